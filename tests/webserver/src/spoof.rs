//! UDP frames made by hand, so that their source addresses can be anybody's.

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::packet::PacketSocket;

/// A frame may get lost for an honest reason; five do not.
const FRAMES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn spoof(words: &[&str]) -> Result<(), Box<dyn Error>> {
    let [
        interface,
        source_mac,
        source_ip,
        target_mac,
        target_ip,
        port,
        text,
    ] = words
    else {
        return Err(crate::USAGE.into());
    };
    let frame = udp_frame(
        (mac(source_mac)?, source_ip.parse()?),
        (mac(target_mac)?, target_ip.parse()?),
        port.parse()?,
        text.as_bytes(),
    )?;
    let socket = PacketSocket::open(interface)?;
    for _ in 0..FRAMES {
        socket.send(&frame)?;
        std::thread::sleep(PAUSE);
    }
    println!("sent {FRAMES} frames");
    Ok(())
}

fn mac(text: &str) -> Result<[u8; 6], Box<dyn Error>> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes?
        .try_into()
        .map_err(|_| format!("{text} is no MAC address").into())
}

/// Ethernet, IPv4 (RFC 791) and UDP (RFC 768; checksum 0 means none).
fn udp_frame(
    source: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
    port: u16,
    text: &[u8],
) -> Result<Vec<u8>, Box<dyn Error>> {
    let udp_length = u16::try_from(8 + text.len())?;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(source.1.octets());
    ip.extend(target.1.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::new();
    frame.extend(target.0);
    frame.extend(source.0);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(40_000u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(text);
    Ok(frame)
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_a_good_ip_header() {
        let at = |last| ([2, 0, 0, 0, 0, last], Ipv4Addr::new(10, 0, 0, last));
        let frame = udp_frame(at(1), at(2), 80, b"text").unwrap();
        assert_eq!(frame.len(), 14 + 20 + 8 + 4);
        // A header with its checksum in place sums up to zero.
        assert_eq!(checksum(&frame[14..34]), 0);
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn macs_have_six_bytes() {
        assert_eq!(mac("02:00:00:00:00:ff").unwrap(), [2, 0, 0, 0, 0, 255]);
        assert!(mac("02:00").is_err() && mac("02:00:00:00:00:fff").is_err());
    }
}
