//! A new SQL file is embedded by the next build, too: the macro that embeds them sees only changes of those it knows.

#[expect(clippy::disallowed_macros, reason = "this is how a build script speaks to cargo")]
fn main() {
    println!("cargo:rerun-if-changed=sql");
}
