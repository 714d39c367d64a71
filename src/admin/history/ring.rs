//! The last samples of one thing.

use super::{INTERVAL, SAMPLES};
use crate::admin::api::{History, Rates};

/// A ring of [`SAMPLES`] samples: 16 bytes each.
#[derive(Debug)]
pub(super) struct Ring {
    samples: [Sample; SAMPLES],
    /// Where the next goes.
    next: usize,
    /// How many there are.
    len: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    new_flows: f32,
    bytes_in: f32,
    bytes_out: f32,
    flows: u32,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            samples: [Sample::default(); SAMPLES],
            next: 0,
            len: 0,
        }
    }
}

impl Ring {
    pub(super) fn push(&mut self, rates: &Rates, flows: u32) {
        if let Some(sample) = self.samples.get_mut(self.next) {
            *sample = Sample {
                new_flows: rates.new_flows_per_second as f32,
                bytes_in: rates.bytes_to_real_server_per_second as f32,
                bytes_out: rates.bytes_to_client_per_second as f32,
                flows,
            };
        }
        self.next = (self.next + 1) % SAMPLES;
        self.len = (self.len + 1).min(SAMPLES);
    }

    /// The oldest first.
    pub(super) fn told(&self) -> History {
        let (end, begin) = self.samples.split_at(self.next);
        let empty = SAMPLES - self.len;
        let samples: Vec<&Sample> = begin.iter().chain(end).skip(empty).collect();
        History {
            interval_seconds: INTERVAL.as_secs_f64(),
            new_flows_per_second: samples.iter().map(|sample| sample.new_flows).collect(),
            bytes_to_real_server_per_second: samples.iter().map(|sample| sample.bytes_in).collect(),
            bytes_to_client_per_second: samples.iter().map(|sample| sample.bytes_out).collect(),
            flows: samples.iter().map(|sample| sample.flows).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_the_last_ones_stay() {
        let mut ring = Ring::default();
        assert_eq!(ring.told().flows, [0_u32; 0]);
        for flows in 0..3 {
            ring.push(&Rates::default(), flows);
        }
        assert_eq!(ring.told().flows, [0, 1, 2]);
        for flows in 3..=SAMPLES as u32 {
            ring.push(&Rates::default(), flows);
        }
        let flows = ring.told().flows;
        assert_eq!(flows.len(), SAMPLES);
        assert_eq!((flows[0], flows[SAMPLES - 1]), (1, SAMPLES as u32));
    }
}
