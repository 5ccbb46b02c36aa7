//! Times single parts of the product: `cargo bench -p levee-benches --bench micro`; those of the storage are there with
//! `--features storage`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use levee_benches::micro;

fn parts(criterion: &mut Criterion) {
    for case in micro::all() {
        let mut group = criterion.benchmark_group("micro");
        group.throughput(Throughput::Elements(case.per_call));
        group.bench_function(case.name, |bencher| {
            let mut call = (case.prepare)();
            bencher.iter(&mut call);
        });
        group.finish();
    }
}

criterion_group!(benches, parts);
criterion_main!(benches);
