//! Connections as they come in, over loopback.

use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpSocket;

use super::*;
use crate::observe::connections::Connections;
use crate::observe::metrics::Metrics;
use crate::service::frames::Flood;
use crate::service::guarded::{PRESSING_MAX, TooSlow};
use crate::service::places::Bounds;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn door(all: usize, per_address: usize) -> (Door, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = Places::new(Bounds { all, per_address }, Connections::new(&Metrics::default()));
    (Door { listener, places }, address)
}

/// A client's end of a connection, and the server's.
async fn pair() -> (TcpStream, Guarded) {
    let (door, address) = door(1, 1).await;
    let client = TcpStream::connect(address).await.unwrap();
    let (connection, _) = door.next().await;
    (client, connection)
}

/// Why reading has ended.
fn why<T: std::error::Error + Copy + 'static>(error: &io::Error) -> T {
    *error.get_ref().and_then(|inner| inner.downcast_ref::<T>()).unwrap_or_else(|| panic!("{error:?}"))
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let (door, address) = door(2, 2).await;
    let _clients = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let first = door.next().await;
    let _second = door.next().await;
    let _others = connect_from("127.0.0.2", address).await;
    let door = Arc::new(door);
    let third = tokio::spawn({
        let door = door.clone();
        async move { drop(door.next().await) }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!third.is_finished(), "a third connection was let in");
    drop(first);
    third.await.unwrap();
}

/// Connects from another address of loopback.
async fn connect_from(own: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(own.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn an_address_beyond_its_share_is_told_so_and_others_come_in() {
    let (door, address) = door(8, 1).await;
    let _first = TcpStream::connect(address).await.unwrap();
    let _place = door.next().await;
    let mut beyond = TcpStream::connect(address).await.unwrap();
    let _other = connect_from("127.0.0.2", address).await;
    let _place_of_other = door.next().await;
    let mut told = Vec::new();
    beyond.read_to_end(&mut told).await.unwrap();
    assert!(told.starts_with(SETTINGS));
    let goaway = &told[SETTINGS.len()..];
    assert_eq!((goaway[2] as usize, goaway[3], goaway[16]), (goaway.len() - 9, 7, 11));
    assert!(goaway.ends_with(b"too many connections from this address"));
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_does_not_hold_a_place() {
    let (_silent, mut connection) = pair().await;
    why::<TooSlow>(&connection.read_u8().await.unwrap_err());
    let headers = [&[0, 0, 200, 1, 4, 0, 0, 0, 1][..], &[0; 200]].concat();
    for (sent, slow) in [(&[][..], PREFACE), (&[PREFACE, SETTINGS].concat()[..], &headers[..])] {
        let (mut client, mut connection) = pair().await;
        client.write_all(sent).await.unwrap();
        let mut bytes = vec![0; sent.len()];
        connection.read_exact(&mut bytes).await.unwrap();
        let mut error = None;
        for byte in slow {
            client.write_u8(*byte).await.unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
            error = connection.read_u8().await.err();
            if error.is_some() {
                break;
            }
        }
        why::<TooSlow>(&error.expect("it is cut off"));
    }
}

#[tokio::test(start_paused = true)]
async fn headers_that_come_in_time_are_not_late_wherever_reads_cut_them() {
    let (mut client, mut connection) = pair().await;
    let headers = [&[0, 0, 2, 1, 4, 0, 0, 0, 1][..], &[0; 2]].concat();
    // Each read ends one block and begins the next one.
    let (begin, end) = headers.split_at(10);
    for sent in [&[PREFACE, SETTINGS, begin].concat()[..]].into_iter().chain([&[end, begin].concat()[..]; 20])
    {
        client.write_all(sent).await.unwrap();
        let mut bytes = vec![0; sent.len()];
        connection.read_exact(&mut bytes).await.expect("it is not late");
        tokio::time::advance(PRESSING_MAX / 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_has_begun_may_be_silent() {
    let (mut client, mut connection) = pair().await;
    client.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let mut bytes = vec![0; PREFACE.len() + SETTINGS.len()];
    connection.read_exact(&mut bytes).await.unwrap();
    assert!(tokio::time::timeout(100 * PRESSING_MAX, connection.read_u8()).await.is_err());
}

#[tokio::test]
async fn who_begins_many_requests_lets_others_have_their_turn() {
    let (mut client, mut connection) = pair().await;
    let sent = [PREFACE, SETTINGS, &[0, 0, 0, 1, 4, 0, 0, 0, 1].repeat(1_000)].concat();
    client.write_all(&sent).await.unwrap();
    let (mut bytes, mut missing, mut turns) = ([0; 90], sent.len(), 0);
    while missing > 0 {
        let mut part = ReadBuf::new(&mut bytes);
        std::future::poll_fn(|cx| {
            let read = Pin::new(&mut connection).poll_read(cx, &mut part);
            turns += usize::from(read.is_pending());
            read
        })
        .await
        .unwrap();
        missing -= part.filled().len();
    }
    assert!((20..=32).contains(&turns), "{turns}");
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let (mut client, mut connection) = pair().await;
    let pings = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(10_000);
    tokio::spawn(async move {
        let sent = client.write_all(&[PREFACE, SETTINGS, &pings].concat()).await;
        (client, sent)
    });
    let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
    why::<Flood>(&error);
}
