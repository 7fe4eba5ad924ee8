//! `forebay dump`: what a data directory has, without a server.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use forebay::proto::v1::{Message, PublishRequest};
use forebay_testkit::server::binary;
use forebay_testkit::{queue, subscription};
use serde_json::Value;

use crate::support::*;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_stored_message_is_printed() {
    let (site, server, mut clients) = with_queue().await;
    create(&mut clients, "other").await;
    let full = Message {
        body: vec![0xff, 0].into(),
        source: "tenant".into(),
        attributes: [("k".to_owned(), "v".to_owned())].into(),
        ..Message::default()
    };
    let messages = vec![message("text"), full, message("last")];
    let request = PublishRequest { queue: queue("q"), messages, ..PublishRequest::default() };
    let results = clients.messages.publish(request).await.unwrap().into_inner().results;
    publish(&mut clients, "other", &["elsewhere"]).await;
    let received = pull(&mut clients, "q", 3).await;
    ack(&mut clients, &subscription("q"), ack_ids(&received[1..2])).await;
    let refused = pull(&mut clients, "other", 1).await;
    nack(&mut clients, &subscription("other"), ack_ids(&refused), reject("no good")).await;
    end(server).await;

    let (code, stdout, stderr) = forebay(&["dump"], &site.data());
    assert_eq!((code, stderr.as_str()), (0, ""));
    let all = lines(&stdout);
    assert_eq!(all.len(), 5, "{stdout}");
    let of_q: Vec<&Value> = all.iter().filter(|line| line["queue"] == queue("q").as_str()).collect();
    let column = |key: &str| of_q.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(column("offset"), [0, 1, 2]);
    assert_eq!(column("waiting"), [true, false, true]);
    assert_eq!(column("body"), ["text".into(), Value::Null, "last".into()]);
    assert_eq!((&of_q[1]["body_base64"], &of_q[1]["source"]), (&"/wA=".into(), &"tenant".into()));
    assert_eq!(of_q[1]["attributes"]["k"], "v");
    let ids: Vec<&str> = results.iter().map(|result| result.message_id.as_str()).collect();
    assert_eq!(column("message_id"), ids);
    let letter = all.iter().find(|line| line["queue"] == queue("other-dead").as_str()).unwrap();
    assert_eq!(letter["dead_letter"]["error"], "no good");

    let (_, some, _) = forebay(&["dump", "--queue", "q", "-o", "ndjson"], &site.data());
    assert_eq!(lines(&some).iter().collect::<Vec<_>>(), of_q);
    let (code, _, stderr) = forebay(&["dump", "--queue", "none"], &site.data());
    assert!(code == 2 && stderr.contains("does not exist"), "{stderr}");
}

#[tokio::test]
async fn a_reader_may_go_and_damage_costs_what_it_hit() {
    let (site, server, mut clients) = with_queue().await;
    let big = |n: usize| format!("<{n:03}>").repeat(4_000).into_bytes();
    for n in 0..40 {
        publish(&mut clients, "q", &[big(n)]).await;
    }
    end(server).await;
    let mut child = Command::new(binary())
        .arg("dump")
        .arg(site.data())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    drop(reader);
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap()), (Some(0), String::new()));
    assert_eq!(lines(&first)[0]["offset"], 0);

    let file = files(&site.data(), "log", ".seg").remove(0);
    let bytes = std::fs::read(&file).unwrap();
    let place = bytes.windows(5).position(|window| window == b"<007>").unwrap();
    flip(&file, place + 9);
    let (code, stdout, stderr) = forebay(&["dump"], &site.data());
    assert_eq!(code, 1);
    let offsets: Vec<u64> = lines(&stdout).iter().map(|line| line["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, (0..40).filter(|n| *n != 7).collect::<Vec<_>>());
    assert!(stderr.contains(&format!("queue={} offsets=7..7: ", queue("q"))), "{stderr}");
}
