//! Generates the gRPC types of the replication transport.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = std::env::var("CARGO_MANIFEST_DIR")? + "/../protocol/proto";
    println!("cargo::rerun-if-changed={proto}/raft.proto");
    // `Bytes` on both ends: payloads are not collected before sending, and slices of the receive buffer until they are copied.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::transport::batches::BatchCodec")
        .compile_protos(&[format!("{proto}/raft.proto")], &[proto])?;
    Ok(())
}
