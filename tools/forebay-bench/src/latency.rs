//! `latency`: an open loop. Messages are due at a fixed rate, whatever became of those before.
//!
//! A latency counts from the time at which a message was due, not from when it was sent: what waits behind a stall
//! counts with its whole wait ("coordinated omission", Gil Tene). How late the generator itself was is measured where
//! it gives a message to its connection; a run in which that matters is refused.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay::proto::v1::publish_stream_response::Result as Answer;
use forebay::proto::v1::{Message, PublishRequest, PublishStreamRequest, PublishStreamResponse};
use forebay_testkit::{Clients, queue};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::Failure;
use crate::args::LatencyArgs;
use crate::bodies::{Bodies, Mix};
use crate::fill::all_done;
use crate::flow::Flow;
use crate::limit::Limit;
use crate::plot::{Curves, draw_last};
use crate::report::{END_TO_END, Figures, PUBLISH, Report, percentiles};
use crate::samples::{Samples, Window, lock};
use crate::schedule::Schedule;
use crate::site::check;

/// The rate at which the limits hold.
pub const RATE_DEFAULT: u64 = 1_000;
/// Most milliseconds from due to delivered, at that rate.
const P50_MS_MAX: f64 = 0.5;
const P99_MS_MAX: f64 = 3.0;
/// Most milliseconds by which the generator may be late, in 99 of 100 messages.
const LATE_P99_MS_MAX: f64 = 1.0;
/// Numbers of messages that are due and not yet taken by their connection.
const DUE_MAX: usize = 1 << 16;
/// Bytes that wait on a connection for the server to take them.
const UNSENT_BYTES_MAX: u64 = 64 << 20;

pub async fn run(args: &LatencyArgs) -> Result<Report, Failure> {
    let LatencyArgs { flow, rate } = args;
    let runs =
        draw_last("forebay-bench latency", flow.plot.as_deref(), flow.judged.runs, async || one(args).await);
    let runs = runs.await?;
    let mut settings = flow.settings();
    settings["rate"] = (*rate).into();
    let wanted = [Limit::Most(END_TO_END[0], P50_MS_MAX), Limit::Most(END_TO_END[2], P99_MS_MAX)];
    let limits = if *rate == RATE_DEFAULT { flow.judged.limits(wanted) } else { Vec::new() };
    Ok(Report { command: "latency", settings, runs, limits })
}

async fn one(args: &LatencyArgs) -> Result<(Figures, Curves), Failure> {
    let flow = Flow::begin(&args.flow).await?;
    let length = Duration::from_secs(args.flow.seconds);
    let schedule = Schedule { rate: args.rate, length: flow.window.warm_up + length };
    let generator = Arc::new(Generator::new(schedule, flow.window, &args.flow.sizes, &flow.names));
    Generator::run(&generator, flow.connections()).await?;
    let delivered = flow.end(schedule.messages()).await?;

    let (answered, late) = generator.seen();
    check("latencies", delivered.latencies(), answered.latencies())?;
    if !args.flow.judged.no_verdict {
        in_time(&late)?;
    }
    let mut figures = vec![
        ("messages", answered.latencies() as f64),
        ("achieved_per_second", answered.messages() as f64 / length.as_secs_f64()),
    ];
    figures.extend(percentiles(PUBLISH, &answered));
    figures.extend(percentiles(END_TO_END, &delivered));
    figures.push(("generator_late_p99_ms", late.latency_ms(0.99)));
    figures.push(("generator_late_max_ms", late.latency_ms(1.0)));
    Ok((figures, vec![("published", answered), ("delivered", delivered)]))
}

/// Fails if the generator was too late for its run to say anything about the server.
pub fn in_time(late: &Samples) -> Result<(), Failure> {
    let p99 = late.latency_ms(0.99);
    if p99 <= LATE_P99_MS_MAX {
        return Ok(());
    }
    Err(format!(
        "the generator could not keep the rate: 1 message in 100 was sent {p99} ms late or more (limit \
         {LATE_P99_MS_MAX} ms), so the run measures the generator; give it a core, or a lower --rate"
    )
    .into())
}

/// Publishes on a schedule, over several connections.
pub struct Generator {
    schedule: Schedule,
    window: Window,
    bodies: Bodies,
    /// Requests that may wait on a connection.
    unsent_max: usize,
    queues: Vec<String>,
    /// Latencies of the answers, and of the generator.
    seen: Mutex<(Samples, Samples)>,
}

impl Generator {
    pub fn new(schedule: Schedule, window: Window, sizes: &Mix, names: &[String]) -> Self {
        Self {
            schedule,
            window,
            bodies: Bodies::new(sizes),
            unsent_max: (UNSENT_BYTES_MAX / sizes.mean_bytes()).clamp(64, DUE_MAX as u64) as usize,
            queues: names.iter().map(|name| queue(name)).collect(),
            seen: (Samples::new(window), Samples::new(window)).into(),
        }
    }

    /// Latencies of the answers, and how late the generator was.
    pub fn seen(&self) -> (Samples, Samples) {
        lock(&self.seen).clone()
    }

    /// Publishes all there is; returns when all is answered.
    pub async fn run(generator: &Arc<Self>, connections: Vec<Clients>) -> Result<(), Failure> {
        let (mut lines, mut workers) = (Vec::new(), JoinSet::new());
        for clients in connections {
            let (line, due) = mpsc::channel(DUE_MAX);
            lines.push(line);
            workers.spawn(Arc::clone(generator).publish(clients, due));
        }
        let (schedule, start) = (generator.schedule, generator.window.start);
        let clock = tokio::task::spawn_blocking(move || schedule.keep(start, &lines));
        all_done(workers).await?;
        Ok(clock.await?)
    }

    /// Publishes what is due on one connection.
    async fn publish(self: Arc<Self>, mut clients: Clients, due: mpsc::Receiver<u64>) -> Result<(), Failure> {
        let (up, requests) = mpsc::channel(self.unsent_max);
        let mut answers = clients.messages.publish_stream(ReceiverStream::new(requests)).await?.into_inner();
        let receive = async {
            let mut count = 0;
            while let Some(answer) = answers.message().await? {
                self.answered(&answer)?;
                count += 1;
            }
            Ok::<u64, Failure>(count)
        };
        let (sent, answered) = tokio::try_join!(self.send(due, up), receive)?;
        check("answers on a connection", answered, sent)
    }

    /// Gives what is due to the connection; how much that was.
    async fn send(
        &self,
        mut due: mpsc::Receiver<u64>,
        up: mpsc::Sender<PublishStreamRequest>,
    ) -> Result<u64, Failure> {
        let mut count = 0;
        while let Some(number) = due.recv().await {
            let since_start = self.schedule.due(number);
            let message = Message { body: self.bodies.stamped(number, since_start), ..Message::default() };
            let turn = (number % self.queues.len() as u64) as usize;
            let publish = PublishRequest {
                queue: self.queues[turn].clone(),
                messages: vec![message],
                ..PublishRequest::default()
            };
            let request = PublishStreamRequest { correlation_id: number, publish: Some(publish) };
            lock(&self.seen).1.took(self.window.start + since_start, Instant::now());
            match up.try_send(request) {
                Ok(()) => count += 1,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let unsent = self.unsent_max;
                    return Err(format!(
                        "the server did not keep up: {unsent} messages wait on a connection; try a lower --rate"
                    )
                    .into());
                }
                // The answers say why.
                Err(mpsc::error::TrySendError::Closed(_)) => break,
            }
        }
        Ok(count)
    }

    fn answered(&self, answer: &PublishStreamResponse) -> Result<(), Failure> {
        match &answer.result {
            Some(Answer::Response(response)) if response.results.len() == 1 => {}
            other => return Err(format!("a publish failed: {other:?}").into()),
        }
        let due = self.window.start + self.schedule.due(answer.correlation_id);
        let (answers, now) = (&mut lock(&self.seen).0, Instant::now());
        answers.took(due, now);
        answers.done(1, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_generator_is_refused() {
        let start = Instant::now();
        let mut late = Samples::new(Window { start, warm_up: Duration::ZERO, length: None });
        (0..99).for_each(|_| late.took(start, start));
        late.took(start, start + Duration::from_millis(50));
        assert!(in_time(&late).is_ok(), "1 in 100");
        late.took(start, start + Duration::from_millis(50));
        let why = in_time(&late).unwrap_err().to_string();
        assert!(why.contains("sent 50") && why.contains("the run measures the generator"), "{why}");
    }
}
