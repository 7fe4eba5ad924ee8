//! Times and durations between their protobuf form and microseconds.

use std::ops::RangeInclusive;
use std::time::Duration;

use tonic::metadata::MetadataMap;

use super::check::invalid;
use super::status::Refusal;

pub const US_PER_S: u64 = 1_000_000;
pub const NS_PER_US: u32 = 1_000;
const NS_PER_S: u32 = 1_000_000_000;

/// How much earlier than its caller's deadline a long poll is answered: a tenth of the time there is, but at least
/// and at most these, and never more than half of it.
const DEADLINE_MARGIN_MIN: Duration = Duration::from_millis(50);
const DEADLINE_MARGIN_MAX: Duration = Duration::from_secs(1);

/// Microseconds of a duration, rounded up, if it is within the range.
pub fn duration_us(
    field: &str,
    duration: &prost_types::Duration,
    range_us: RangeInclusive<u64>,
) -> Result<u64, Refusal> {
    if duration.seconds < 0 || duration.nanos < 0 {
        return Err(invalid(field, "is negative; durations count from 0"));
    }
    let (seconds, nanos) = (duration.seconds.unsigned_abs(), duration.nanos.unsigned_abs());
    if nanos >= NS_PER_S {
        return Err(invalid(field, format!("has {nanos} nanos; give 0 to 999999999")));
    }
    let us = seconds
        .checked_mul(US_PER_S)
        .and_then(|us| us.checked_add(u64::from(nanos.div_ceil(NS_PER_US))))
        .unwrap_or(u64::MAX);
    if !range_us.contains(&us) {
        let (shortest, longest) = (text(*range_us.start()), text(*range_us.end()));
        let given = if us == u64::MAX { "too long".to_owned() } else { text(us) };
        return Err(invalid(field, format!("is {given}; give {shortest} to {longest}")));
    }
    Ok(us)
}

fn text(us: u64) -> String {
    if us.is_multiple_of(US_PER_S) {
        format!("{} s", us / US_PER_S)
    } else {
        format!("{}.{:06} s", us / US_PER_S, us % US_PER_S)
    }
}

/// A duration of this many microseconds.
pub fn duration(us: u64) -> prost_types::Duration {
    // At most 2^64 / 10^6 seconds, which fits.
    prost_types::Duration {
        seconds: (us / US_PER_S) as i64,
        nanos: (us % US_PER_S) as i32 * NS_PER_US as i32,
    }
}

/// A wall time this many microseconds after the Unix epoch.
pub fn timestamp(us: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: (us / US_PER_S) as i64,
        nanos: (us % US_PER_S) as i32 * NS_PER_US as i32,
    }
}

/// Microseconds since the Unix epoch of a wall time that has passed by `now_us`, rounded up; 0 for what was before.
pub fn past_us(field: &str, time: &prost_types::Timestamp, now_us: u64) -> Result<u64, Refusal> {
    let nanos = u64::try_from(time.nanos).ok().filter(|nanos| *nanos < u64::from(NS_PER_S));
    let nanos =
        nanos.ok_or_else(|| invalid(field, format!("has {} nanos; give 0 to 999999999", time.nanos)))?;
    let Ok(seconds) = u64::try_from(time.seconds) else { return Ok(0) };
    let us = seconds.saturating_mul(US_PER_S).saturating_add(nanos.div_ceil(NS_PER_US.into()));
    if us > now_us {
        return Err(invalid(field, "is still to come by the server's clock; give latest"));
    }
    Ok(us)
}

/// How long the caller waits for its answer, as the header `grpc-timeout` says: up to 8 digits and a unit.
pub fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// How long to wait so that the answer still reaches a caller who gives up after `timeout`.
pub fn wait_within(wait: Duration, timeout: Option<Duration>) -> Duration {
    let Some(timeout) = timeout else { return wait };
    let margin = (timeout / 10).clamp(DEADLINE_MARGIN_MIN, DEADLINE_MARGIN_MAX).min(timeout / 2);
    wait.min(timeout - margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(seconds: i64, nanos: i32) -> Result<u64, String> {
        let duration = prost_types::Duration { seconds, nanos };
        duration_us("lease", &duration, 1_000_000..=43_200_000_000).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn durations_are_checked() {
        assert_eq!(parsed(30, 0), Ok(30_000_000));
        assert_eq!(parsed(1, 1), Ok(1_000_001));
        assert_eq!(parsed(43_200, 0), Ok(43_200_000_000));
        let negative = "lease: is negative; durations count from 0".to_owned();
        assert_eq!(parsed(-1, 0), Err(negative.clone()));
        assert_eq!(parsed(2, -1), Err(negative.clone()));
        assert_eq!(parsed(i64::MIN, i32::MIN), Err(negative));
        assert_eq!(parsed(2, 1_000_000_000), Err("lease: has 1000000000 nanos; give 0 to 999999999".into()));
        assert_eq!(parsed(0, 999_999_000), Err("lease: is 0.999999 s; give 1 s to 43200 s".into()));
        assert_eq!(parsed(43_200, 1), Err("lease: is 43200.000001 s; give 1 s to 43200 s".into()));
        assert_eq!(parsed(i64::MAX, 0), Err("lease: is too long; give 1 s to 43200 s".into()));
    }

    #[test]
    fn times_keep_their_microseconds() {
        assert_eq!(duration(1_500_001), prost_types::Duration { seconds: 1, nanos: 500_001_000 });
        assert_eq!(timestamp(u64::MAX).seconds, 18_446_744_073_709);
    }

    #[test]
    fn only_times_that_have_passed_are_taken() {
        let past = |seconds, nanos| past_us("t", &prost_types::Timestamp { seconds, nanos }, 5_000_000);
        assert_eq!([past(5, 0), past(4, 1), past(-1, 5)], [Ok(5_000_000), Ok(4_000_001), Ok(0)]);
        for (seconds, nanos) in [(5, 1), (i64::MAX, 0), (1, -1), (1, 1_000_000_000)] {
            assert!(past(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }

    #[test]
    fn the_timeout_header_is_read() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&metadata)
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("10u"), Some(Duration::from_micros(10)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["S", "", "5", "5s", "123456789S", "-5S", "+5S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(grpc_timeout(&MetadataMap::new()), None);
    }

    #[test]
    fn a_wait_ends_before_the_deadline() {
        let ms = Duration::from_millis;
        assert_eq!(wait_within(ms(60_000), None), ms(60_000));
        assert_eq!(wait_within(ms(60_000), Some(ms(5_000))), ms(4_500));
        assert_eq!(wait_within(ms(60_000), Some(ms(30_000))), ms(29_000));
        assert_eq!(wait_within(ms(60_000), Some(ms(200))), ms(150));
        assert_eq!(wait_within(ms(60_000), Some(ms(40))), ms(20));
        assert_eq!(wait_within(ms(60_000), Some(ms(0))), ms(0));
        assert_eq!(wait_within(ms(1_000), Some(ms(5_000))), ms(1_000));
    }
}
