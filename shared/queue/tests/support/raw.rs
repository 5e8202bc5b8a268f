//! AMQP by hand, for messages that no client library should send.

use std::io::{Read, Write};
use std::net::TcpStream;

/// A message whose properties are given as bytes.
pub struct RawMessage {
    pub exchange: &'static str,
    pub routing_key: Vec<u8>,
    /// The AMQP property `message_id`.
    pub message_id: Option<Vec<u8>>,
    /// The header table without its length.
    pub headers: Option<Vec<u8>>,
    pub body: Vec<u8>,
}

/// Publishes one message, and returns when the broker has handled it.
pub fn publish(url: &str, message: &RawMessage) {
    let uri: lapin::uri::AMQPUri = url.parse().expect("AMQP_URL");
    let mut socket = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).expect("a broker");
    socket.write_all(b"AMQP\x00\x00\x09\x01").expect("a broker");
    expect(&mut socket, 10, 10);
    let login = uri.authority.userinfo;
    let mut start_ok = vec![0, 0, 0, 0];
    start_ok.extend(short(b"PLAIN"));
    start_ok.extend(long(format!("\0{}\0{}", login.username, login.password).as_bytes()));
    start_ok.extend(short(b"en_US"));
    method(&mut socket, 0, 10, 11, &start_ok);
    expect(&mut socket, 10, 30);
    // channel_max 10, frame_max 128 KiB, no heartbeat
    method(&mut socket, 0, 10, 31, &[0, 10, 0, 2, 0, 0, 0, 0]);
    method(&mut socket, 0, 10, 40, &[short(uri.vhost.as_bytes()), vec![0, 0]].concat());
    expect(&mut socket, 10, 41);
    method(&mut socket, 1, 20, 10, &[0]);
    expect(&mut socket, 20, 11);

    let publish =
        [vec![0, 0], short(message.exchange.as_bytes()), short(&message.routing_key), vec![0]].concat();
    method(&mut socket, 1, 60, 40, &publish);
    let mut flags = 0b0001_0000_0000_0000u16; // delivery_mode
    let mut properties = Vec::new();
    if let Some(headers) = &message.headers {
        flags |= 0b0010_0000_0000_0000;
        properties.extend(long(headers));
    }
    properties.push(2);
    if let Some(id) = &message.message_id {
        flags |= 0b0000_0000_1000_0000;
        properties.extend(short(id));
    }
    let mut header = vec![0, 60, 0, 0];
    header.extend((message.body.len() as u64).to_be_bytes());
    header.extend(flags.to_be_bytes());
    header.extend(properties);
    frame(&mut socket, 2, 1, &header);
    frame(&mut socket, 3, 1, &message.body);
    // Frames are handled in order, so when the channel is closed, the message has been routed.
    method(&mut socket, 1, 20, 40, &[&200u16.to_be_bytes()[..], &short(b"done"), &[0, 0, 0, 0]].concat());
    expect(&mut socket, 20, 41);
}

/// Returns a header table nested this many levels deep, without its own length.
pub fn nested_headers(levels: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..levels {
        table = [short(b"n"), vec![b'F'], long(&table)].concat();
    }
    table
}

pub fn short(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn method(socket: &mut TcpStream, channel: u16, class: u16, method: u16, arguments: &[u8]) {
    let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
    frame(socket, 1, channel, &payload);
}

fn frame(socket: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let head = [&[kind][..], &channel.to_be_bytes(), &(payload.len() as u32).to_be_bytes()].concat();
    socket.write_all(&[&head, payload, b"\xce"].concat()).expect("a broker");
}

/// Reads one frame and checks that it holds this method.
fn expect(socket: &mut TcpStream, class: u16, method: u16) {
    let mut head = [0; 7];
    socket.read_exact(&mut head).expect("a frame");
    let mut payload = vec![0; u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize + 1];
    socket.read_exact(&mut payload).expect("a frame");
    let got = (u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]]));
    assert_eq!(got, (class, method), "{}", String::from_utf8_lossy(&payload));
}
