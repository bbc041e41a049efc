//! What a server says of itself: the figures at `/metrics` of its admin address, which is written in its data directory.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

const ANSWER: Duration = Duration::from_secs(10);

/// One answer.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Asks the server of a data directory.
    pub(crate) fn read(data: &Path) -> anyhow::Result<Metrics> {
        let path = data.join("admin");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read {}: the server has no admin address (`--admin none`?)", path.display()))?;
        let address: SocketAddr = text.trim().parse().with_context(|| format!("the address in {}", path.display()))?;
        let ask = || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: whimbrel\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = ask().with_context(|| format!("ask http://{address}/metrics"))?;
        if !answer.starts_with("HTTP/1.1 200") {
            bail!("http://{address}/metrics answers {}", answer.lines().next().unwrap_or("nothing"));
        }
        Ok(Metrics(answer))
    }

    /// A counter or a gauge, of all shards together.
    pub(crate) fn sum(&self, name: &str) -> anyhow::Result<f64> {
        let mut values = self.values(name, "").peekable();
        values.peek().with_context(|| format!("the server has no metric {name}"))?;
        Ok(values.sum())
    }

    /// The largest of all shards among the values with this label, such as `quantile="1"`.
    pub(crate) fn max(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let highest = self.values(name, label).reduce(f64::max);
        highest.with_context(|| format!("the server has no metric {name} with {label}"))
    }

    /// The sum of all shards of the values with this label.
    pub(crate) fn sum_of(&self, name: &str, label: &str) -> f64 {
        self.values(name, label).sum()
    }

    /// Refusals, what was dropped, asked for and sent again, where there was any: for an error.
    pub(crate) fn unusual(&self) -> String {
        let names = [
            "whimbrel_refused_total",
            "whimbrel_dropped_total",
            "whimbrel_fan_outs_resent_total",
            "whimbrel_fan_outs_asked_total",
        ];
        let lines =
            self.0.lines().filter(|line| names.iter().any(|name| line.starts_with(name)) && !line.ends_with(" 0"));
        lines.collect::<Vec<_>>().join(", ")
    }

    fn values<'a>(&'a self, name: &'a str, label: &'a str) -> impl Iterator<Item = f64> + 'a {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) || !rest.contains(label) {
                return None;
            }
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let metrics = Metrics(
            "# TYPE a counter\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4\na_total_more{shard=\"0\"} 9\n\
             q{shard=\"0\",quantile=\"0.5\"} 1.5\nq{shard=\"0\",quantile=\"1\"} 2e-3\nq{shard=\"1\",quantile=\"1\"} 0.5\n"
                .to_owned(),
        );
        assert_eq!(metrics.sum("a_total").unwrap(), 7.0);
        assert_eq!(metrics.max("q", "quantile=\"1\"").unwrap(), 0.5);
        assert_eq!(metrics.sum_of("q", "quantile=\"1\""), 0.502);
        assert!(metrics.sum("b").is_err() && metrics.max("a_total", "quantile").is_err());
    }
}
