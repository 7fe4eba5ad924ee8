//! The command line as typed. What needs more than its form checked becomes a plan in `plan.rs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::errors::EXIT_CODES;
use crate::message::MessageFormat;
use crate::names::{QueueName, parse_part};
use crate::output::Format;
use crate::values::{Start, parse_duration, parse_pair};

/// Works with a Forebay server: queues, subscriptions, messages.
///
/// A queue is NAME in the namespace "default", or namespaces/NAMESPACE/queues/NAME in full.
/// Results go to standard output; errors, notes and progress to standard error.
#[derive(Debug, Parser)]
#[command(name = "forebayctl", version, after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
pub struct Cli {
    /// Address of the server
    #[arg(
        long,
        global = true,
        env = "FOREBAY_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7070"
    )]
    pub server: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list, describe, pause and delete queues
    #[command(subcommand, visible_alias = "queues")]
    Queue(QueueCommand),
    /// Create, list, describe and delete subscriptions of a queue
    #[command(subcommand, visible_alias = "subscriptions")]
    Subscription(SubscriptionCommand),
    Publish(PublishArgs),
    Consume(ConsumeArgs),
    Peek(PeekArgs),
    Tail(TailArgs),
    /// Show or cancel a single message by its id
    #[command(subcommand)]
    Message(MessageCommand),
    Stats(StatsArgs),
    /// About the server itself
    #[command(subcommand)]
    Server(ServerCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  forebayctl completions bash > ~/.local/share/bash-completion/completions/forebayctl"
    )]
    Completions {
        shell: Shell,
    },
}

/// How results are shown.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArg {
    /// How to show the result
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Make a queue, with a subscription "default"
    #[command(after_help = "Examples:\n  forebayctl queue create mail\n  \
        forebayctl queue create namespaces/shop/queues/orders --label team=checkout")]
    Create {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        name: QueueName,
        /// Do not make the subscription "default"
        #[arg(long)]
        no_subscription: bool,
        /// A label, as often as needed
        #[arg(long = "label", value_name = "K=V", value_parser = parse_pair)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show the queues of a namespace
    #[command(
        after_help = "Examples:\n  forebayctl queue list\n  forebayctl queue list --namespace shop -o ndjson"
    )]
    List {
        /// Which namespace
        #[arg(long, default_value = "default", value_parser = parse_part)]
        namespace: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show one queue
    #[command(after_help = "Example:\n  forebayctl queue describe mail -o json")]
    Describe {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        name: QueueName,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Finish the messages of a queue for all of its subscriptions, whoever has them; the queue stays
    #[command(
        after_help = "Examples:\n  forebayctl queue purge mail\n  forebayctl queue purge mail --below 5000"
    )]
    Purge {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        name: QueueName,
        /// Only messages below this offset [default: all that are there now]
        #[arg(long, value_name = "OFFSET")]
        below: Option<u64>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Stop the delivery of a queue until it is resumed; nothing is lost
    #[command(after_help = "Examples:\n  forebayctl queue pause mail --reason 'relay is down'\n  \
        forebayctl queue pause mail --refuse")]
    Pause {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        name: QueueName,
        /// Refuse what is published meanwhile, instead of holding it
        #[arg(long)]
        refuse: bool,
        /// For those who ask why
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Go on with the delivery of a paused queue
    #[command(after_help = "Example:\n  forebayctl queue resume mail")]
    Resume {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        name: QueueName,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Remove a queue with its subscriptions and messages, for good
    #[command(after_help = "Example:\n  forebayctl queue delete mail")]
    Delete {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        name: QueueName,
        #[command(flatten)]
        output: OutputArg,
    },
}

#[derive(Debug, Subcommand)]
pub enum SubscriptionCommand {
    /// Make a subscription
    #[command(after_help = "Examples:\n  forebayctl subscription create mail audit\n  \
        forebayctl subscription create mail slow --lease 5m --max-in-flight 20 --from latest\n  \
        forebayctl subscription create mail sender --max-attempts 5 --min-backoff 10s --max-backoff 5m")]
    Create {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        queue: QueueName,
        /// The subscription
        #[arg(value_parser = parse_part)]
        name: String,
        /// How long a delivered message is leased: 1s to 12h [default: 30s]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        lease: Option<Duration>,
        /// Most messages leased at one time [default: 10000]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max_in_flight: Option<u64>,
        /// Deliveries until a message goes to the dead-letter queue [default: 16]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max_attempts: Option<u32>,
        /// Delay after a failed first delivery, doubled with each: 1ms to 7days [default: none, or 1s with
        /// --max-backoff]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        min_backoff: Option<Duration>,
        /// Longest delay after a failed delivery [default: none, or 10min with --min-backoff]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        max_backoff: Option<Duration>,
        /// Where given-up messages go [default: QUEUE-dead]
        #[arg(long, value_name = "QUEUE", value_parser = QueueName::parse)]
        dead_letter_queue: Option<QueueName>,
        /// Where to begin: earliest, latest, an offset, or the first message of a time such as 2026-01-31T08:00:00Z
        #[arg(long, value_name = "PLACE", default_value = "earliest", value_parser = Start::parse)]
        from: Start,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show the subscriptions of a queue
    #[command(after_help = "Example:\n  forebayctl subscription list mail")]
    List {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        queue: QueueName,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show one subscription
    #[command(after_help = "Example:\n  forebayctl subscription describe mail default -o json")]
    Describe {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        queue: QueueName,
        /// The subscription
        #[arg(value_parser = parse_part)]
        name: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Remove a subscription
    #[command(after_help = "Example:\n  forebayctl subscription delete mail audit")]
    Delete {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        queue: QueueName,
        /// The subscription
        #[arg(value_parser = parse_part)]
        name: String,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// Publish the lines of a file or of standard input
///
/// Each line is a message: any bytes up to the line feed, without it. An empty line is an empty message, and what
/// follows the last line feed is a message too. The input is streamed, never read whole.
///
/// The last line on standard output is a JSON object, after an error too: queue, published, first_offset,
/// last_offset, bytes, seconds. "published" counts the messages on disk for certain: the first ones of the input
/// after those that --resume-from skipped. To go on after an error, skip them as well.
///
/// Requests are stored in the order of the input, whatever --in-flight is, and one that is sent again is not stored
/// twice. Tried again are lost connections, UNAVAILABLE and errors with a retry delay, until nothing was
/// acknowledged for --retry-for; the first contact is not. A run that ended without all answers may have stored
/// more than it counted, so a resumed run can store those messages again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seq 1000 | forebayctl publish numbers
  forebayctl publish mail --file mails.txt --attr from=import --in-flight 8
  forebayctl publish mail --file mails.txt --resume-from 5000
  forebayctl publish images --file cat.png --format raw")]
pub struct PublishArgs {
    /// The queue, short or in full
    #[arg(value_parser = QueueName::parse)]
    pub queue: QueueName,
    /// Where the messages come from; - is standard input
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
    /// How the input is cut into messages
    #[arg(long, value_enum, default_value = "lines")]
    pub format: InputFormat,
    /// An attribute of each message, as often as needed
    #[arg(long = "attr", value_name = "K=V", value_parser = parse_pair)]
    pub attributes: Vec<(String, String)>,
    /// Requests on their way at one time; order is kept with any
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub in_flight: u8,
    /// Most messages in a request; it also ends at 256 KiB or when no more input is at hand
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub batch: u16,
    /// Skip the first N messages of the input
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub resume_from: u64,
    /// How long to try again while nothing is acknowledged
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub retry_for: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// Each line is a message
    Lines,
    /// The whole input is one message
    Raw,
}

/// Print messages as they come, and acknowledge them
///
/// Follows the queue until Ctrl-C, --max or --idle-exit. A message is acknowledged after it was written to standard
/// output, and the command ends only when its acknowledgements are answered. What was leased and not printed is
/// released: at Ctrl-C, and when the reader of the output is gone, which is no error (exit code 0). A pipe holds
/// more than its reader has read: `| head -n 5` acknowledges more than five messages, --max 5 does not.
///
/// Once connected, an outage of the server ends nothing: it connects again, with waits of up to 2 s. Messages whose
/// lease ran out meanwhile come again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  forebayctl consume mail
  forebayctl consume mail --subscription audit -o ndjson --idle-exit 10s
  forebayctl consume mail --max 5 --leave")]
#[command(group = ArgGroup::new("after").args(["ack", "nack", "leave"]))]
pub struct ConsumeArgs {
    /// The queue, short or in full
    #[arg(value_parser = QueueName::parse)]
    pub queue: QueueName,
    /// Which subscription of the queue
    #[arg(short, long, default_value = "default", value_name = "NAME", value_parser = parse_part)]
    pub subscription: String,
    /// End after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max: Option<u64>,
    /// End when no message came for this long; outages of the server do not count
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub idle_exit: Option<Duration>,
    /// Acknowledge what was printed (this is the default)
    #[arg(long)]
    pub ack: bool,
    /// Have what was printed delivered again at once; the attempt counts
    #[arg(long)]
    pub nack: bool,
    /// Let the leases of what was printed run out
    #[arg(long)]
    pub leave: bool,
    /// How to print messages
    #[arg(short = 'o', long = "output", value_enum, default_value = "raw", value_name = "FORMAT")]
    pub format: MessageFormat,
}

/// Print messages without leasing them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  forebayctl peek mail\n  forebayctl peek mail --from 1000 --max 50 -o ndjson"
)]
pub struct PeekArgs {
    /// The queue, short or in full
    #[arg(value_parser = QueueName::parse)]
    pub queue: QueueName,
    /// First offset [default: the earliest message that waits for some subscription]
    #[arg(long, value_name = "OFFSET")]
    pub from: Option<u64>,
    /// Most messages
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max: u64,
    /// How to print messages
    #[arg(short = 'o', long = "output", value_enum, default_value = "raw", value_name = "FORMAT")]
    pub format: MessageFormat,
}

/// Follow a queue: print messages as they are published, without leasing them
///
/// Consumers notice nothing of it, and what they have finished comes too, as long as the server has it. Messages that
/// do not come any more are told as a gap on standard error. Once connected, an outage of the server ends nothing:
/// it goes on behind the last message. Ctrl-C ends it with exit code 0.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  forebayctl tail mail
  forebayctl tail mail --from earliest --count 100 -o ndjson
  forebayctl tail mail --from 2026-01-31T08:00:00Z")]
pub struct TailArgs {
    /// The queue, short or in full
    #[arg(value_parser = QueueName::parse)]
    pub queue: QueueName,
    /// Where to begin: earliest, latest, an offset, or the first message of a time such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "PLACE", default_value = "latest", value_parser = Start::parse)]
    pub from: Start,
    /// End after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    #[command(flatten)]
    pub output: OutputArg,
}

/// Show figures of the server, or of a queue and its subscriptions
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  forebayctl stats\n  forebayctl stats mail -o json")]
pub struct StatsArgs {
    /// The queue, short or in full
    #[arg(value_parser = QueueName::parse)]
    pub queue: Option<QueueName>,
    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Print a message
    #[command(
        after_help = "Example:\n  forebayctl message get mail BwcHBwcHBwcHBwcHBwcHBwAAAAAAAAAB -o ndjson"
    )]
    Get {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        queue: QueueName,
        /// The message's id, as a publish, a peek or a delivery gives it
        id: String,
        /// How to print it
        #[arg(short = 'o', long = "output", value_enum, default_value = "raw", value_name = "FORMAT")]
        format: MessageFormat,
    },
    /// Finish a message that nobody has yet, for all subscriptions
    #[command(after_help = "Example:\n  forebayctl message cancel mail BwcHBwcHBwcHBwcHBwcHBwAAAAAAAAAB")]
    Cancel {
        /// The queue, short or in full
        #[arg(value_parser = QueueName::parse)]
        queue: QueueName,
        /// The message's id
        id: String,
        #[command(flatten)]
        output: OutputArg,
    },
}

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Show version, features and limits
    #[command(after_help = "Example:\n  forebayctl server info -o json")]
    Info {
        #[command(flatten)]
        output: OutputArg,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.get_subcommands().count() == 0 {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path}");
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&Cli::command(), "");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(Cli::try_parse_from(["forebayctl", "consume", "q", "--ack", "--nack"]).is_err());
    }
}
