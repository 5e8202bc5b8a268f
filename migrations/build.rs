//! Makes the next build embed a new SQL file. The macro that embeds the files sees only changes of those that
//! it knows.

#[expect(clippy::disallowed_macros, reason = "this is how a build script speaks to cargo")]
fn main() {
    println!("cargo:rerun-if-changed=sql");
}
