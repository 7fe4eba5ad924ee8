//! For fuzzers: what lies too deep for users of the crate, one function for each target. They panic where a promise is
//! broken. There only with the feature `fuzzing`, and in tests; the other targets are in the package `forebay-testkit`.

pub use crate::core::walk::commands;
pub use crate::service::requests;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_commands_are_told_again_by_the_log(data in prop::collection::vec(any::<u8>(), 0..1_000)) {
            super::commands(&data);
        }

        #[test]
        fn requests_of_any_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
            super::requests(&data);
        }
    }
}
