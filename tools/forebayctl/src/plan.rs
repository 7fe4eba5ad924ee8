//! Arguments made into plans: defaults filled in, combinations checked.

use std::collections::BTreeMap;
use std::path::Path;

use crate::args::{ConsumeArgs, InputFormat, PublishArgs};
use crate::consume::{After, ConsumePlan};
use crate::errors::CtlError;
use crate::input::Source;
use crate::publish::PublishPlan;

/// Checks what to publish.
pub fn publish(args: PublishArgs) -> Result<PublishPlan, CtlError> {
    Ok(PublishPlan {
        queue: args.queue,
        source: if args.file == Path::new("-") { Source::Stdin } else { Source::File(args.file) },
        lines: args.format == InputFormat::Lines,
        attributes: unique("attribute", args.attributes)?,
        in_flight: args.in_flight.into(),
        batch: args.batch.into(),
        resume_from: args.resume_from,
        patience: args.retry_for,
    })
}

/// Checks what to consume.
pub fn consume(args: &ConsumeArgs) -> ConsumePlan {
    ConsumePlan {
        subscription: args.queue.subscription(&args.subscription),
        max: args.max,
        idle_exit: args.idle_exit,
        after: match (args.nack, args.leave) {
            (true, _) => After::Nack,
            (_, true) => After::Leave,
            _ => After::Ack,
        },
        format: args.format,
    }
}

/// Pairs as a map; a key that comes twice is a mistake.
pub fn unique(what: &str, pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, CtlError> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value).is_some() {
            return Err(CtlError::Usage(format!("the {what} {key:?} is given twice; give it once")));
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_given_twice_is_refused() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(unique("label", vec![pair("a", "1"), pair("b", "2")]).unwrap().len(), 2);
        let error = unique("label", vec![pair("a", "1"), pair("a", "1")]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
