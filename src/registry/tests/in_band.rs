//! What responses bring, beside what exporters report.

use super::*;

/// An idle instance, but for 100 requests/s of 10 ms.
fn figures(cpu: f64) -> Figures {
    let (latency_ms, requests_per_second) = (Some(10.0), 100.0);
    Figures { cpu: Some(cpu), latency_ms, requests_per_second, ..Figures::default() }
}

impl Fixture {
    /// Responses for some seconds, four reports a second, the last one just now.
    fn hear(&mut self, id: &str, figures: Figures, seconds: u64) {
        for _ in 0..4 * seconds {
            self.pass(250);
            self.registry.in_band("chat", id, figures, self.now);
        }
    }

    fn cpu(&mut self, id: &str) -> Option<f64> {
        self.load(id)?.cpu
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_reports_in_its_responses_is_reporting_for_as_long_as_it_does() {
    let mut fixture = Fixture::new(&[instance("a", 1), instance("b", 2)]);
    fixture.registry.take_dirty();
    fixture.hear("a", figures(0.5), 4);
    assert_eq!(fixture.registry.take_dirty(), ["chat"]);
    assert_eq!(fixture.state("a"), Some(State::Reporting));
    assert_eq!(fixture.state("b"), Some(State::Unreported));
    let load = fixture.load("a").unwrap();
    assert_eq!((load.cpu, load.rate, load.latency_ms), (Some(0.5), Some(100.0), Some(10.0)));
    fixture.pass(3000);
    assert_eq!(fixture.state("a"), Some(State::Reporting), "three intervals");
    fixture.pass(250);
    assert_eq!(fixture.state("a"), Some(State::Unreported), "and silence costs it no more");
}

#[tokio::test(start_paused = true)]
async fn a_rate_does_not_count_for_a_time_of_which_nothing_was_told() {
    let mut fixture = Fixture::new(&[instance("a", 1)]);
    fixture.hear("a", figures(0.5), 1);
    fixture.pass(60_000);
    fixture.hear("a", Figures { requests_per_second: 7.0, ..figures(0.5) }, 2);
    let load = fixture.load("a").unwrap();
    assert!((load.rate.unwrap() - 7.0).abs() < 1.0, "{load:?}");
}

#[tokio::test(start_paused = true)]
async fn an_exporters_figures_come_first_while_they_are_fresh() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    fixture.hear("a", figures(0.9), 4);
    assert_eq!(fixture.cpu("a"), Some(0.9));
    let used = Status { cpu_used_cores: Some(0.2), cpu_limit_cores: Some(1.0), ..status_1() };
    // At once, though the last responses' figures are as fresh as can be.
    for seq in 2..6 {
        fixture.report(&[("a", Status { seq, ..used.clone() })]);
        assert_eq!(fixture.cpu("a"), Some(0.2));
        fixture.hear("a", figures(0.9), 1);
        assert_eq!(fixture.cpu("a"), Some(0.2));
    }
    fixture.hear("a", figures(0.9), 2);
    assert_eq!(fixture.cpu("a"), Some(0.2), "three intervals");
    fixture.hear("a", figures(0.9), 1);
    assert_eq!(fixture.cpu("a"), Some(0.9), "the exporter is silent");
    assert_eq!(fixture.state("a"), Some(State::Reporting));
}

#[tokio::test(start_paused = true)]
async fn where_an_exporter_tells_no_figures_those_of_responses_count() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    for _ in 0..8 {
        fixture.tell("exporter-1", &[("a", Report::Serving)]);
        fixture.hear("a", figures(0.9), 1);
    }
    assert_eq!(fixture.cpu("a"), Some(0.9));
    assert_eq!(fixture.load("a").unwrap().rate, Some(100.0));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_wants_no_requests_is_not_brought_back_by_its_last_responses() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    fixture.hear("a", figures(0.5), 2);
    fixture.tell("exporter-1", &[("a", Report::NotServing), ("b", Report::Serving)]);
    fixture.hear("a", figures(0.5), 5);
    assert_eq!(fixture.ids(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_responses_report_stays_though_no_exporter_reads_it() {
    let mut fixture = Fixture::new(&[reporting("a", 1), instance("b", 2), instance("c", 3)]);
    for second in 1..10 {
        fixture.hear("a", figures(0.5), 1);
        fixture.tell("exporter-1", &[("a", unreachable(1000 * second))]);
        assert_eq!(fixture.state("a"), Some(State::Reporting));
        assert_eq!(fixture.cpu("a"), Some(0.5));
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_of_nobody_changes_nothing() {
    let mut fixture = Fixture::new(&[instance("a", 1)]);
    fixture.registry.take_dirty();
    fixture.registry.in_band("chat", "gone", figures(0.5), fixture.now);
    fixture.registry.in_band("mail", "a", figures(0.5), fixture.now);
    assert_eq!(fixture.registry.take_dirty(), [""; 0]);
    assert_eq!(fixture.state("a"), Some(State::Unreported));
}
