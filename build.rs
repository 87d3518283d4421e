//! Compiles the protocol files, with protox, which needs no protoc; and keeps
//! the library mapped once it is loaded.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["ipconfig/v1/status.proto", "xds/service/orca/v3/orca.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;

    // LuaJIT unmaps a library whose handle it collects, on reload at the latest,
    // and the plugin's thread would run on in no code at all.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    Ok(())
}
