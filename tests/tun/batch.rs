//! Frames that are written together.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use kube_tun_proxy::tun::{
    BATCH_FRAMES, DEFAULT_ADDRESS_V4, FrameWriter, Link, Queue, Refused, VNET_HEADER_LEN,
    VnetHeader,
};

use crate::namespace::{block_on, config, ok, open};
use crate::packets;
use crate::traffic::{client_of, next, ready};

const VIP: &str = "10.0.0.3:53";

/// With the kernel's AIO and without.
const WAYS: [fn(Arc<Queue>) -> FrameWriter; 2] = [FrameWriter::new, FrameWriter::one_by_one];

/// More than go together, by number and by bytes.
pub(crate) fn frames_arrive_in_order() {
    for way in WAYS {
        let queues = ready(1);
        // Large ones fall to all of them: what a socket holds is limited.
        let clients: Vec<_> = (0..7)
            .map(|_| {
                let client = client_of(vip());
                client.send_to(b"x", vip()).unwrap();
                let (_, request) = next(&queues.queues);
                (client, request.source)
            })
            .collect();
        let count = BATCH_FRAMES as u32 * 6;
        let payload = |number: u32| {
            let len = match number {
                number if number % 24 == 0 => 60_000,
                number if number % 2 == 0 => 1_400,
                _ => 4,
            };
            let mut payload = vec![7; len];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            payload
        };

        let mut writer = way(queues.queues.into_iter().next().unwrap().into());
        for number in 0..count {
            let (_, to) = clients[number as usize % clients.len()];
            send(&mut writer, header(), to, &payload(number)).unwrap();
        }
        writer.flush().unwrap();
        for number in 0..count {
            let (client, _) = &clients[number as usize % clients.len()];
            let received = receive(client);
            assert!(
                received == payload(number),
                "{number}: {:?}",
                &received[..4]
            );
        }
        // Nothing waits any more.
        writer.flush().unwrap();
    }
}

/// A frame that the kernel refuses is counted, and those around it arrive.
pub(crate) fn one_bad_frame_is_refused() {
    for way in WAYS {
        let queues = ready(1);
        let client = client_of(vip());
        client.send_to(b"x", vip()).unwrap();
        let (_, request) = next(&queues.queues);

        let mut writer = way(queues.queues.into_iter().next().unwrap().into());
        let outside = VnetHeader::needs_checksum(60_000, 6);
        let outcomes = [
            send(&mut writer, header(), request.source, b"before"),
            send(&mut writer, outside, request.source, b"bad"),
            send(&mut writer, header(), request.source, b"after"),
            writer.flush(),
        ];
        let refused: Vec<Refused> = outcomes.into_iter().filter_map(Result::err).collect();
        let [refused] = &refused[..] else {
            panic!("{refused:?}");
        };
        assert_eq!(refused.frames, 1);
        assert_eq!(refused.error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(receive(&client), b"before");
        assert_eq!(receive(&client), b"after");
    }
}

/// All of a batch, and one alone: the device is down.
pub(crate) fn all_frames_are_refused() {
    for count in [1, 5] {
        let queues = open(1);
        let queue = Arc::new(queues.queues.into_iter().next().unwrap());
        let mut writer = FrameWriter::new(queue);
        let to = SocketAddr::new(DEFAULT_ADDRESS_V4.into(), 9);
        for _ in 0..count {
            send(&mut writer, header(), to, b"x").unwrap();
        }
        let refused = writer.flush().unwrap_err();
        assert_eq!(refused.frames, count);
        assert_eq!(refused.error.raw_os_error(), Some(libc::EIO));
        writer.flush().unwrap();
    }
}

/// Room may be larger than what is then sent, and be given up.
pub(crate) fn room_that_is_not_used() {
    let queues = open(1);
    block_on(async { ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await) });
    let client = client_of(vip());
    client.send_to(b"x", vip()).unwrap();
    let (_, request) = next(&queues.queues);
    let mut writer = FrameWriter::new(queues.queues.into_iter().next().unwrap().into());
    for payload in [b"one", b"two"] {
        writer.room(65_000).fill(0xff);
        send(&mut writer, header(), request.source, payload).unwrap();
        writer.room(65_000).fill(0xff);
    }
    writer.flush().unwrap();
    assert_eq!(receive(&client), b"one");
    assert_eq!(receive(&client), b"two");
}

fn vip() -> SocketAddr {
    VIP.parse().unwrap()
}

fn header() -> VnetHeader {
    VnetHeader::udp_checksum(20)
}

fn send(
    writer: &mut FrameWriter,
    header: VnetHeader,
    to: SocketAddr,
    payload: &[u8],
) -> Result<(), Refused> {
    let packet = packets::udp(vip(), to, payload);
    let len = VNET_HEADER_LEN + packet.len();
    let room = writer.room(len);
    header.write(room.first_chunk_mut().unwrap());
    room[VNET_HEADER_LEN..].copy_from_slice(&packet);
    writer.send(len)
}

fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut payload = vec![0; 65_535];
    let len = client.recv(&mut payload).unwrap();
    payload.truncate(len);
    payload
}
