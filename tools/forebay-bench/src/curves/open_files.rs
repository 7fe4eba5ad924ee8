//! Room for many connections: each is an open file here, and one in the server, which inherits the limit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Failure;

/// Open files for everything else.
const OTHERS: u64 = 256;

/// Lets this process, and servers it starts from now on, have so many connections.
pub fn allow(connections: u64) -> Result<(), Failure> {
    let needed = connections.saturating_add(OTHERS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = maximum.filter(|maximum| *maximum < needed) {
        return Err(format!(
            "{connections} connections need {needed} open files, and {maximum} are allowed; raise the limit \
             (ulimit -Hn {needed}, as root) or take fewer --points"
        )
        .into());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may() {
        let before = getrlimit(Resource::Nofile);
        let low = Rlimit { current: Some(300), maximum: before.maximum };
        setrlimit(Resource::Nofile, low).unwrap();
        allow(10).unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(300), "it suffices");
        allow(100).unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(356));
        setrlimit(Resource::Nofile, before).unwrap();
    }
}
