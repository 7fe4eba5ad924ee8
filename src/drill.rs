//! Panics on demand, so that tests of real servers can show what becomes of one.
//!
//! Where a debug build runs with `FOREBAY_DRILL=FOLDER`, a part panics at its point while the folder has a file of the
//! part's name. Release builds have no such points.

/// A place where a part may be told to panic.
#[inline]
pub fn point(part: &str) {
    #[cfg(debug_assertions)]
    {
        use std::path::PathBuf;
        use std::sync::OnceLock;
        static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
        let folder = FOLDER.get_or_init(|| std::env::var_os("FOREBAY_DRILL").map(PathBuf::from));
        if folder.as_ref().is_some_and(|folder| folder.join(part).exists()) {
            panic!("drill: {part}");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = part;
}
