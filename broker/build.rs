//! Generates the messages between nodes from `protocol/proto/peer.proto`.

fn main() -> std::io::Result<()> {
    let proto = "../protocol/proto/peer.proto";
    println!("cargo:rerun-if-changed={proto}");
    tonic_prost_build::configure().bytes(".levee.peer").compile_protos(&[proto], &["../protocol/proto"])
}
