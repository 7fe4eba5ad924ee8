//! `cargo xtask hostile`: hostile requests to a server of its own. One line of figures on standard output.

use forebay_testkit::hostile::Hostile;
use forebay_testkit::payload::seeded_lines;
use forebay_testkit::{Clients, Server, ServerOptions, queue};

use forebay::proto::v1::{CreateQueueRequest, Message, PeekRequest, PublishRequest, Queue};

/// Messages of a queue that no request names.
const BESIDE: usize = 100;

pub fn run(requests: u64, seed: u64) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let server = Server::start(&folder.path().join("data"), &ServerOptions::small_segments());
    eprintln!("seed {seed}");
    let figures = crate::runtime()?.block_on(async {
        let mut clients = server.clients();
        publish(&mut clients, seed).await?;
        let figures = Hostile { requests, seed }.run(&server).await;
        check(&mut clients, seed).await?;
        Ok::<_, String>(figures)
    })?;
    let (status, stderr) = server.terminate();
    let answers: Vec<String> =
        figures.answers.iter().map(|(code, count)| format!("{code}={count}")).collect();
    println!("hostile requests={} stored={} {}", figures.total(), figures.counted, answers.join(" "));
    figures.violations.iter().for_each(|violation| eprintln!("{violation}"));
    if !status.success() || stderr.contains("panicked") {
        return Err(format!("the server: {status}\n{stderr}"));
    }
    match figures.violations.len() {
        0 => Ok(()),
        count => Err(format!("{count} violations; seed {seed}")),
    }
}

async fn publish(clients: &mut Clients, seed: u64) -> Result<(), String> {
    let queue_to_make = Some(Queue { name: queue("beside"), ..Queue::default() });
    let request = CreateQueueRequest { queue: queue_to_make, ..CreateQueueRequest::default() };
    clients.queues.create_queue(request).await.map_err(|status| format!("no queue: {status}"))?;
    let message = |body: Vec<u8>| Message { body: body.into(), ..Message::default() };
    for body in seeded_lines(seed, BESIDE) {
        let messages = vec![message(body)];
        let request = PublishRequest { queue: queue("beside"), messages, ..PublishRequest::default() };
        clients.messages.publish(request).await.map_err(|status| format!("no publish: {status}"))?;
    }
    Ok(())
}

/// What was published is there, and nothing else.
async fn check(clients: &mut Clients, seed: u64) -> Result<(), String> {
    let request = PeekRequest { queue: queue("beside"), max_messages: 1_000, ..PeekRequest::default() };
    let peeked = clients.messages.peek(request).await.map_err(|status| format!("no peek: {status}"))?;
    let bodies: Vec<Vec<u8>> =
        peeked.into_inner().messages.into_iter().map(|message| message.body.to_vec()).collect();
    match bodies == seeded_lines(seed, BESIDE) {
        true => Ok(()),
        false => Err(format!("the queue beside has changed; seed {seed}")),
    }
}
