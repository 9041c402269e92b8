//! Figures as people read them: three significant digits and a unit.
use switchback_control::wire::RttView;

/// Stands for a figure that is not known yet.
pub(crate) const UNKNOWN: &str = "-";

/// Microseconds as milliseconds, or seconds from 10 s on: `0.34 ms`, `3.41 ms`, `34.1 ms`, `341 ms`, `34.1 s`.
pub(crate) fn micros(us: u64) -> String {
    let ms = us as f64 / 1e3;
    match us {
        0..10_000 => format!("{ms:.2} ms"),
        10_000..100_000 => format!("{ms:.1} ms"),
        100_000..10_000_000 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// The smoothed value of a round-trip time, or `-`.
pub(crate) fn rtt(view: Option<RttView>) -> String {
    view.map_or_else(|| UNKNOWN.into(), |view| micros(view.smoothed_us.into()))
}

/// Bytes in binary units: `512 B`, `1.50 KiB`, `34.2 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.5 would round to 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Bytes per second.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.max(0.0) as u64))
}

/// Bits per second in decimal units, as links are sold: `512 bit/s`, `9.41 Gbit/s`.
pub(crate) fn bit_rate(bits_per_second: u64) -> String {
    const UNITS: [&str; 6] = ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"];
    if bits_per_second < 1000 {
        return format!("{bits_per_second} bit/s");
    }
    let mut value = bits_per_second as f64 / 1000.0;
    let mut unit = 0;
    // 999.5 would round to 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A share from 0 to 1: `0.4 %`, `92 %`.
pub(crate) fn percent(share: f32) -> String {
    let percent = share * 100.0;
    if percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

/// How long something has lasted, to the second: `12s`, `3m12s`, `2h05m`, `3d04h`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_sensible_digits() {
        let shown: Vec<_> =
            [0, 340, 3_414, 34_140, 341_400, 3_414_000, 34_140_000].map(micros).into();
        let wanted = ["0.00 ms", "0.34 ms", "3.41 ms", "34.1 ms", "341 ms", "3414 ms", "34.1 s"];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn bytes_keep_sensible_digits_and_never_show_1024_of_a_unit() {
        let shown: Vec<_> =
            [0, 1023, 1024, 1536, 35_861_299, (1 << 20) - 1, 1 << 30, u64::MAX].map(bytes).into();
        let wanted = [
            "0 B", "1023 B", "1.00 KiB", "1.50 KiB", "34.2 MiB", "1.00 MiB", "1.00 GiB", "16.0 EiB",
        ];
        assert_eq!(shown, wanted);
        assert_eq!(rate(1536.9), "1.50 KiB/s");
        assert_eq!(rate(f64::NAN), "0 B/s");
    }

    #[test]
    fn rates_are_in_decimal_units_and_shares_in_percent() {
        let shown: Vec<_> =
            [0, 999, 1000, 999_499, 999_500, 9_414_000_000, u64::MAX].map(bit_rate).into();
        let wanted = [
            "0 bit/s",
            "999 bit/s",
            "1.00 kbit/s",
            "999 kbit/s",
            "1.00 Mbit/s",
            "9.41 Gbit/s",
            "18.4 Ebit/s",
        ];
        assert_eq!(shown, wanted);
        assert_eq!([0.0, 0.004, 0.925, 1.0].map(percent), ["0.0 %", "0.4 %", "92 %", "100 %"]);
    }

    #[test]
    fn ages_show_two_units() {
        let shown: Vec<_> = [999, 12_000, 192_000, 7_500_000, 273_600_000].map(age).into();
        assert_eq!(shown, ["0s", "12s", "3m12s", "2h05m", "3d04h"]);
    }
}
