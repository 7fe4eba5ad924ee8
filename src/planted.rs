//! Bugs that are planted on purpose, to see that the tests find them: `cargo xtask planted-bugs` tries each.
//!
//! In a build with the feature `planted-bugs` the environment variable [`VARIABLE`] names the bug of this process; it is
//! read once, and told on standard error. In any other build [`bug`] is constantly false, so that nothing of a bug is
//! left in the program. An optimised build with the feature does not compile: nobody is to run one.

/// Names the bug.
pub const VARIABLE: &str = "FOREBAY_PLANTED_BUG";

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("the feature planted-bugs breaks the program on purpose; it is for debug builds alone");

/// Whether this process is to have the bug of this name.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn bug(_name: &str) -> bool {
    false
}

/// Whether this process is to have the bug of this name.
#[cfg(feature = "planted-bugs")]
pub fn bug(name: &str) -> bool {
    use std::sync::OnceLock;

    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let chosen = std::env::var(VARIABLE).ok();
        eprintln!("THIS PROGRAM CAN BE BROKEN ON PURPOSE (feature planted-bugs); planted now: {chosen:?}");
        chosen
    });
    chosen.as_deref() == Some(name)
}
