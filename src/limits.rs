//! Every limit a client can meet, in one place. `GetServerInfo` reports them; errors name them.

/// Longest namespace, queue or subscription name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Largest body of one message in one request, in bytes.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Most attributes on one message.
pub const ATTRIBUTES_MAX: usize = 100;
/// Longest attribute key, in bytes.
pub const ATTRIBUTE_KEY_BYTES_MAX: usize = 256;
/// Longest attribute value, in bytes.
pub const ATTRIBUTE_VALUE_BYTES_MAX: usize = 1024;
/// Longest ordering key, in bytes.
pub const ORDERING_KEY_BYTES_MAX: usize = 1024;
/// Longest source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 255;
/// Longest producer id, in bytes.
pub const PRODUCER_ID_BYTES_MAX: usize = 255;
/// Longest error text kept with a retried or rejected message, in bytes; longer text is refused.
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;
/// Most messages in one publish request.
pub const PUBLISH_MESSAGES_MAX: usize = 1_000;
/// Most bytes (bodies, attributes and other stored fields) in one publish request.
pub const PUBLISH_BYTES_MAX: usize = 8 << 20;
/// Most requests of one publish stream whose answers the client has not taken yet.
pub const PUBLISH_STREAM_REQUESTS_MAX: usize = 256;
/// Largest gRPC message the server decodes: a full publish and its envelope.
pub const REQUEST_BYTES_MAX: usize = PUBLISH_BYTES_MAX + (1 << 20);
/// Largest gRPC message that publishes nothing: all acks of one request fit. Decoding can take dozens of times as much.
pub const OTHER_REQUEST_BYTES_MAX: usize = 1 << 20;
/// Most messages one pull or one delivery carries.
pub const PULL_MESSAGES_MAX: u32 = 1_000;
/// Most body bytes one pull or one delivery carries, unless a single message is larger.
pub const PULL_BYTES_MAX: u64 = 8 << 20;
/// Most acknowledgement ids in one request.
pub const ACK_IDS_MAX: usize = 10_000;
/// Shortest lease, in microseconds.
pub const LEASE_US_MIN: u64 = 1_000_000;
/// Longest lease, in microseconds.
pub const LEASE_US_MAX: u64 = 12 * 3600 * 1_000_000;
/// Lease length unless asked otherwise, in microseconds.
pub const LEASE_US_DEFAULT: u64 = 30_000_000;
/// Longest delay of a retry, in microseconds.
pub const RETRY_DELAY_US_MAX: u64 = 7 * 24 * 3600 * 1_000_000;
/// Deliveries of a message until it is given up, unless asked otherwise.
pub const ATTEMPTS_DEFAULT: u32 = 16;
/// Most deliveries of a message that may be asked for.
pub const ATTEMPTS_MAX: u32 = 1_000_000;
/// Shortest delay of a retry policy, in microseconds.
pub const BACKOFF_US_MIN: u64 = 1_000;
/// First delay of a retry policy unless asked otherwise, in microseconds.
pub const BACKOFF_US_DEFAULT: u64 = 1_000_000;
/// Longest delay of a retry policy unless asked otherwise, in microseconds.
pub const BACKOFF_LONGEST_US_DEFAULT: u64 = 600_000_000;
/// Longest wait of a pull for its first message, in microseconds.
pub const PULL_WAIT_US_MAX: u64 = 60_000_000;
/// Messages in flight on one subscription.
pub const IN_FLIGHT_MAX: u64 = 10_000;
/// Producers remembered for de-duplication, over all queues.
pub const PRODUCERS_MAX: usize = 10_000;
/// Publishes of one producer whose answers are kept for its retries.
pub const PRODUCER_ANSWERS_MAX: usize = 64;
/// How long an idle producer is remembered, in microseconds of the log's clock.
pub const PRODUCER_IDLE_US: u64 = 3_600_000_000;
/// Largest page of a listing.
pub const PAGE_SIZE_MAX: usize = 1_000;
/// Page of a listing unless asked otherwise.
pub const PAGE_SIZE_DEFAULT: usize = 100;
/// Most labels on one queue or subscription.
pub const LABELS_MAX: usize = 64;
/// Longest label key, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;
/// Longest label value, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;
/// Messages of a pull or peek unless asked otherwise.
pub const PULL_MESSAGES_DEFAULT: u32 = 10;
/// A message's priority unless asked otherwise.
pub const PRIORITY_DEFAULT: u8 = 4;
/// Most messages of credit that a Subscribe stream may have unspent.
pub const CREDIT_MESSAGES_MAX: u64 = 1 << 32;
/// Most bytes of credit that a Subscribe stream may have unspent.
pub const CREDIT_BYTES_MAX: u64 = 1 << 40;
/// Acks requests of one Subscribe stream that wait for their results; with more, the stream is not read.
pub const UNANSWERED_ACKS_MAX: usize = 16;
/// An idle Subscribe or Tail stream has a heartbeat this often, in microseconds.
pub const HEARTBEAT_US: u64 = 10_000_000;
/// Connections at one time, unless configured.
pub const CONNECTIONS_DEFAULT: usize = 1_024;
/// Most connections that can be configured.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Most Tail streams at one time.
pub const TAILS_MAX: usize = 64;
