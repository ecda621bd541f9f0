//! The clock of the relay: time since the machine was started, including the time it was suspended.
//!
//! A claim ends after some seconds even if the machine was suspended meanwhile. On Linux [`std::time::Instant`] stands
//! still while a machine is suspended (clock_gettime(2), CLOCK_MONOTONIC); this clock does not (CLOCK_BOOTTIME). No
//! clock of a guest shows that its host has stopped the virtual machine, unless the host moves the clock on afterwards.
//!
//! Only code that does I/O calls [`Time::now`]; decisions get the time as a parameter.

use std::ops::Add;
use std::time::Duration;

/// A moment in the life of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// Now.
    pub fn now() -> Self {
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(clock);
        Self(Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0)))
    }

    /// The time since an earlier moment; zero if that moment is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment this much earlier; the beginning if there is none.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_advances_and_can_be_added_and_subtracted() {
        let earlier = Time::now();
        let later = earlier + Duration::from_secs(3);
        assert_eq!((later.since(earlier), earlier.since(later)), (Duration::from_secs(3), Duration::ZERO));
        assert_eq!(later.before(Duration::from_secs(3)), earlier);
        assert!(Time::now() >= earlier);
        assert!(later + Duration::MAX > later, "never wraps");
    }
}
