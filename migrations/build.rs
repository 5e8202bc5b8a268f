//! A new SQL file is embedded by the next build, too: the macro that embeds them sees only changes of those it knows.

fn main() {
    println!("cargo:rerun-if-changed=sql");
}
