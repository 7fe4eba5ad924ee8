//! Attacks from the network on a real server: it lives, in bounded memory, and goes on to answer others; places are free
//! again afterwards. Each attack is described where it is made, in `forebay_testkit::attack`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_testkit::attack::wire::{self, Raw};
use forebay_testkit::attack::{Attack, End, OWN};
use forebay_testkit::{Clients, Server};

use crate::support::*;

/// What a server may take more of memory while it is attacked.
const GROWTH_KIB_MAX: u64 = 32 << 10;
/// Attackers at one time.
const ATTACKERS: usize = 3;
/// Answers that an honest client gets at least while each attack goes on.
const ANSWERS: usize = 20;
/// Connections of one address: fewer than one attack makes.
const PER_ADDRESS: usize = 64;

/// A server under attack, with a queue `q` of an honest client.
struct Siege {
    _site: Site,
    server: Server,
    honest: Clients,
    sent: Vec<Vec<u8>>,
    before_kib: u64,
}

impl Siege {
    async fn new() -> Self {
        let mut site = Site::new();
        site.options.config.push_str(&format!("connections_per_address = {PER_ADDRESS}\n"));
        let server = site.start();
        let mut honest = server.clients();
        create(&mut honest, "q").await;
        publish(&mut honest, "q", &bodies(10)).await;
        drain(&mut honest, "q").await;
        let before_kib = resident_kib(&server);
        Self { _site: site, server, honest, sent: Vec::new(), before_kib }
    }

    fn target(&self) -> SocketAddr {
        self.server.grpc.parse().unwrap()
    }

    /// Attacks until an honest client has had its answers and every attacker has had its turns.
    async fn endure(&mut self, attack: Attack, rounds: usize) {
        let (target, over) = (self.target(), Arc::new(AtomicBool::new(false)));
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|_| {
                let over = over.clone();
                tokio::spawn(async move {
                    let mut ends = Vec::new();
                    while ends.len() < rounds || !over.load(Ordering::Relaxed) {
                        ends.push(within("a round", attack.round(target)).await.unwrap());
                    }
                    ends
                })
            })
            .collect();
        let mut answers = 0;
        while answers < ANSWERS || !attackers.iter().any(|attacker| attacker.is_finished()) {
            let body = format!("{} {}", attack.name(), self.sent.len()).into_bytes();
            within("an answer", publish(&mut self.honest, "q", &[&body])).await;
            self.sent.push(body);
            answers += 1;
            let grown_kib = resident_kib(&self.server).saturating_sub(self.before_kib);
            assert!(grown_kib < GROWTH_KIB_MAX, "{attack:?}: {grown_kib} KiB more after {answers} answers");
            over.store(answers >= ANSWERS, Ordering::Relaxed);
        }
        for attacker in attackers {
            let ends = within("the attackers' end", attacker).await.unwrap();
            if let Some(end) = attack.must_end() {
                assert!(ends.iter().all(|seen| *seen == end), "{attack:?}: {ends:?}");
            }
        }
        self.wait_for_connections(1).await;
    }

    /// Waits until so many connections are open.
    async fn wait_for_connections(&self, count: u64) {
        let start = std::time::Instant::now();
        loop {
            let open = metric(&self.server, "forebay_connections").await;
            if open == count {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{open} connections are open, not {count}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn cuts(&self, reason: &str) -> u64 {
        metric(&self.server, &format!("forebay_connections_cut_total{{reason=\"{reason}\"}}")).await
    }

    /// What honest clients have sent is there, once, in order, and nothing else.
    async fn check(mut self) {
        assert_eq!(within("the messages", drain(&mut self.honest, "q")).await, self.sent);
        let (status, stderr) = within("the server's end", end(self.server)).await;
        assert!(status.success(), "{status}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

/// Waits for what may take long, but must not take for ever.
async fn within<T>(what: &str, coming: impl Future<Output = T>) -> T {
    let came = tokio::time::timeout(PATIENCE, coming).await;
    came.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// Attacks of some kinds, one after another on one server.
async fn endure(attacks: &[Attack]) -> Siege {
    let mut siege = Siege::new().await;
    for attack in attacks {
        siege.endure(*attack, 2).await;
    }
    siege
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_calls_are_cut_off_and_hold_up_nobody() {
    endure(&[Attack::RapidReset, Attack::PatientReset, Attack::ManyStreams]).await.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_are_cut_off_and_hold_up_nobody() {
    let floods = [
        Attack::PingFlood,
        Attack::SettingsFlood,
        Attack::PriorityFlood,
        Attack::WindowUpdateFlood,
        Attack::EmptyDataFlood,
    ];
    let siege = endure(&floods).await;
    // h2 itself has more against some of them, but not against all.
    assert!(siege.cuts("flood").await >= 2 * ATTACKERS as u64 * 4);
    siege.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_never_end_or_swell_are_cut_off() {
    endure(&[Attack::ContinuationFlood, Attack::HeaderBomb, Attack::LargeHeaders]).await.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http2_is_cut_off_and_what_is_no_request_is_refused() {
    let nonsense = [
        Attack::BadHttp2,
        Attack::LengthPrefix,
        Attack::Malformed,
        Attack::Truncated,
        Attack::CompressionBomb,
    ];
    endure(&nonsense).await.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_give_no_window_and_reflection_take_bounded_memory() {
    endure(&[Attack::ZeroWindow, Attack::WindowGames, Attack::Reflection]).await.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_not_held_by_a_byte_now_and_then() {
    let mut siege = Siege::new().await;
    let target = siege.target();
    let attackers: Vec<_> = (0..ATTACKERS).map(|_| tokio::spawn(Attack::SlowBodies.round(target))).collect();
    let budget = metric(&siege.server, "forebay_admission_budget_bytes").await;
    while metric(&siege.server, "forebay_admission_used_bytes").await < budget / 10 * 8 {
        assert!(!attackers.iter().any(|attacker| attacker.is_finished()), "they take all of it");
    }
    // An honest client is told to come back, and does: it must get through while they go on.
    while siege.sent.len() < ANSWERS {
        assert!(!attackers.iter().all(|attacker| attacker.is_finished()), "{} answers", siege.sent.len());
        let body = bodies(siege.sent.len() + 1).pop().unwrap();
        let request = forebay::proto::v1::PublishRequest {
            queue: forebay_testkit::queue("q"),
            messages: vec![message(&body)],
            ..Default::default()
        };
        match within("an answer", siege.honest.messages.publish(request)).await {
            Ok(_) => siege.sent.push(body),
            Err(status) => drop(check_error(&status, tonic::Code::ResourceExhausted, "MEMORY_BUDGET")),
        }
    }
    attackers.iter().for_each(|attacker| attacker.abort());
    siege.wait_for_connections(1).await;
    assert_eq!(metric(&siege.server, "forebay_admission_used_bytes").await, 0);
    siege.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_the_places_of_others() {
    let mut siege = Siege::new().await;
    siege.endure(Attack::Connections, 3).await;
    assert!(siege.cuts("address").await >= 36, "of a hundred, 64 have places");
    let mut held = Vec::new();
    for _ in 0..PER_ADDRESS {
        held.push(Raw::open(siege.target(), OWN, &[]).await.unwrap());
    }
    siege.wait_for_connections(1 + PER_ADDRESS as u64).await;
    let told = Raw::connect(siege.target(), OWN).await.unwrap().read_to_end().await;
    assert!(told.ends_with(b"too many connections from this address"), "{told:?}");
    // Others come in all the same.
    let mut other = siege.server.clients();
    within("an answer", get_queue(&mut other, "q")).await;
    drop((held, other));
    siege.wait_for_connections(1).await;
    siege.check().await;
}

/// Two connections have places; the next waits until one of them ends.
async fn check_that_two_have_places(site: &Site) {
    let server = site.start();
    let mut connections = [server.clients(), server.clients()];
    create(&mut connections[0], "q").await;
    let mut streams = Vec::new();
    for connection in &mut connections {
        // Who is at work is not asked to make room.
        streams.push(Stream::open(connection, &forebay_testkit::subscription("q"), 1, 1).await);
    }
    let mut next = Raw::open(server.grpc.parse().unwrap(), OWN, &[]).await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(2), next.read()).await;
    assert!(early.is_err(), "there is no place");
    drop((streams.pop(), connections));
    assert!(!within("a place", next.read()).await.is_empty());
}

#[tokio::test]
async fn there_are_as_many_connections_as_are_configured() {
    let mut site = Site::new();
    site.options.config.push_str("connections = 2\n");
    check_that_two_have_places(&site).await;
}

#[tokio::test]
async fn there_are_no_more_connections_than_open_files_allow() {
    let mut site = Site::new();
    // The log and HTTP have 512.
    let limited = "ulimit -n 514; \"$0\" \"$@\"; exit $?";
    site.options.wrapper = ["sh", "-c", limited].map(str::to_owned).to_vec();
    check_that_two_have_places(&site).await;
}

/// Sends bytes one by one until the server ends the connection; the last one again and again if they do not suffice.
async fn trickle(target: SocketAddr, own: Ipv4Addr, at_once: Vec<u8>, slowly: Vec<u8>) {
    let mut raw = Raw::connect(target, own).await.unwrap();
    raw.send(&at_once).await.unwrap();
    for at in 0.. {
        let byte = slowly.get(at).or(slowly.last()).copied();
        if raw.send(byte.as_slice()).await.is_err() {
            return;
        }
        // Nothing is measured against it: it ends when the server ends it.
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_silent_beginnings_lose_their_places() {
    let siege = Siege::new().await;
    let target = siege.target();
    let hello = [wire::PREFACE, &wire::settings_frame(&[])].concat();
    let headers = wire::frame(wire::HEADERS, wire::END_HEADERS, 1, &vec![0; 10_000]);
    let mut slow = Vec::new();
    for _ in 0..10 {
        slow.push(tokio::spawn(trickle(target, OWN, vec![], wire::PREFACE[..20].to_vec())));
        slow.push(tokio::spawn(trickle(target, OWN, hello.clone(), headers.clone())));
        slow.push(tokio::spawn(async move {
            let mut silent = Raw::connect(target, OWN).await.unwrap();
            assert!(silent.read_to_end().await.len() < 100, "its own greeting at most");
        }));
    }
    for slow in slow {
        tokio::time::timeout(PATIENCE, slow).await.expect("its place is taken from it").unwrap();
    }
    assert!(siege.cuts("slow").await >= 30);
    siege.wait_for_connections(1).await;
    siege.check().await;
}

/// Every attack is in one of the tests above.
#[test]
fn no_attack_is_left_out() {
    let source = include_str!("attacks.rs");
    for attack in Attack::ALL {
        assert!(source.contains(&format!("Attack::{attack:?}")), "{attack:?}");
    }
    assert_eq!(Attack::PingFlood.must_end(), Some(End::Cut));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_connection_breaks_is_nobodys_mistake() {
    let siege = Siege::new().await;
    for method in ["Publish", "Acknowledge"] {
        let mut raw = Raw::open(siege.target(), OWN, &[]).await.unwrap();
        let begun = wire::frame(wire::DATA, 0, 1, &wire::message(0, 100, b"a part"));
        let path = format!("/forebay.v1.MessageService/{method}");
        raw.send(&[wire::call(1, &path), begun].concat()).await.unwrap();
        siege.wait_for_connections(2).await;
        drop(raw);
        siege.wait_for_connections(1).await;
        let label = format!("method=\"MessageService/{method}\",code=\"");
        let (_, metrics) = http_get(&siege.server.http, "/metrics").await;
        let codes: Vec<_> =
            metrics.lines().filter_map(|line| line.split_once(&label)?.1.split_once('"')).collect();
        let codes: Vec<_> = codes.iter().filter(|(code, _)| *code != "OK").collect();
        assert_eq!(codes, [&("UNKNOWN", "} 1")]);
    }
    siege.check().await;
}
