//! What is taken from a configuration file, and what is refused with which words.

use super::*;

fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(text, Path::new("node.toml"))
}

fn error(text: &str) -> String {
    parse(text).expect_err("refused").to_string()
}

#[test]
fn two_lines_are_enough() {
    let config = parse("name = \"a\"\ndata_dir = \"/d\"\n").expect("valid");
    assert_eq!(config.addresses(), ["127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:10809"]);
    assert_eq!(config.replica_timing(false), Timing::default());
    assert!(config.replica_timing(true).confirmed_reads);
    assert!(!config.listens_beyond_loopback());
}

#[test]
fn unknown_field_is_named_with_its_line_and_what_is_allowed() {
    let text = error("name = \"a\"\ndata_dir = \"/d\"\n\n[listen]\npeers = \"127.0.0.1:1\"\n");
    assert!(text.starts_with("node.toml:5: "), "{text}");
    assert!(text.contains("peers") && text.contains("`admin`"), "{text}");
}

#[test]
fn wrong_type_names_the_line() {
    let text = error("name = \"a\"\ndata_dir = \"/d\"\nshards = \"many\"\n");
    assert!(text.starts_with("node.toml:3: "), "{text}");
}

#[test]
fn a_public_address_needs_the_word_insecure() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\n";
    let text = error(&format!("{base}[listen]\npeer = \"10.0.0.1:7400\"\n"));
    assert!(text.contains("insecure_plaintext = true"), "{text}");
    let config = parse(&format!("{base}insecure_plaintext = true\n[listen]\npeer = \"10.0.0.1:7400\"\n"));
    assert!(config.expect("valid").listens_beyond_loopback());
}

#[test]
fn the_unspecified_address_must_be_advertised() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\ninsecure_plaintext = true\n[listen]\nnbd = \"0.0.0.0:10809\"\n";
    assert!(error(base).contains("[advertise]"));
    let config = parse(&format!("{base}[advertise]\nnbd = \"box.example:10809\"\n")).expect("valid");
    assert_eq!(config.addresses()[2], "box.example:10809");
    assert!(error(&format!("{base}[advertise]\nnbd = \"box.example\"\n")).contains("host:port"));
}

#[test]
fn nfs_is_where_nbd_is_unless_told() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\ninsecure_plaintext = true\n";
    let of = |text: &str| {
        let config = parse(&format!("{base}{text}")).expect("valid");
        (config.nfs_listen().to_string(), config.nfs_host())
    };
    let pair = |listen: &str, host: &str| (listen.to_owned(), host.to_owned());
    assert_eq!(of(""), pair("127.0.0.1", "127.0.0.1"));
    assert_eq!(of("[listen]\nnbd = \"[fd00::1]:10809\"\n"), pair("fd00::1", "fd00::1"));
    let anywhere = "[listen]\nnbd = \"0.0.0.0:10809\"\n[advertise]\nnbd = \"box.example:10809\"\n";
    assert_eq!(of(anywhere), pair("0.0.0.0", "box.example"));
    assert_eq!(of("[listen]\nnfs = \"10.0.0.1\"\n"), pair("10.0.0.1", "10.0.0.1"));
    let told = "[listen]\nnfs = \"0.0.0.0\"\n[advertise]\nnfs = \"files.example\"\n";
    assert_eq!(of(told), pair("0.0.0.0", "files.example"));
    assert!(error(&format!("{base}[listen]\nnfs = \"0.0.0.0\"\n")).contains("[advertise]"));
    assert!(error(&format!("{base}[advertise]\nnfs = \"files.example:2049\"\n")).contains("without a port"));
    let open = "name = \"a\"\ndata_dir = \"/d\"\n[listen]\nnfs = \"10.0.0.1\"\n";
    assert!(error(open).contains("insecure_plaintext = true"));
}

#[test]
fn timers_that_break_the_lease_argument_are_refused() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\n[timing]\n";
    assert!(error(&format!("{base}grace_ms = 1050\n")).contains("1.1 times"));
    assert!(error(&format!("{base}beacon_interval_ms = 400\n")).contains("third"));
    assert!(error(&format!("{base}shrink_after_ms = 1500\n")).contains("grace_ms"));
    assert!(parse(&format!("{base}lease_ms = 2000\ngrace_ms = 2500\n")).is_ok());
}

#[test]
fn scrubs_have_a_period_or_none() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\n";
    let timing = |text: &str| parse(&format!("{base}{text}")).expect("valid").replica_timing(false);
    assert_eq!(timing("").scrub_period, Some(Micros::from_secs(14 * DAY_SECONDS)));
    assert_eq!(timing("scrub_period_days = 30\n").scrub_period, Some(Micros::from_secs(30 * DAY_SECONDS)));
    assert_eq!(timing("scrub_period_days = 0\n").scrub_period, None);
    assert!(error(&format!("{base}scrub_period_days = 366\n")).contains("0 for none"));
}

#[test]
fn extents_become_cold_when_told() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\n";
    let config = parse(&format!("{base}extent_idle_seconds = 1\n")).expect("valid");
    assert_eq!(config.replica_timing(false).extent_idle, Micros::from_secs(1));
    assert!(error(&format!("{base}extent_idle_seconds = 0\n")).contains("1 to 3600"));
}

#[test]
fn a_filesystem_has_room_for_its_bitmaps() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\n";
    assert_eq!(parse(base).expect("valid").filesystem_cache_bytes_max, 256 << 20);
    assert!(error(&format!("{base}filesystem_cache_bytes_max = 1000\n")).contains("16 MiB"));
}

#[test]
fn names_and_ports_are_checked() {
    assert!(error("name = \"a b\"\ndata_dir = \"/d\"\n").contains("letters, digits"));
    let same = "name = \"a\"\ndata_dir = \"/d\"\n[listen]\npeer = \"127.0.0.1:9\"\nadmin = \"127.0.0.1:9\"\n";
    assert!(error(same).contains("another listener"));
    assert!(error("name = \"a\"\ndata_dir = \"/d\"\nreads = \"never\"\n").contains("confirmed"));
}

#[test]
fn the_hypervisor_flag_is_found_and_its_absence_trusted_only_with_a_flags_line() {
    assert!(virtual_by_cpuinfo("flags\t\t: fpu hypervisor sse\n"));
    assert!(!virtual_by_cpuinfo("flags\t\t: fpu sse\n"));
    assert!(virtual_by_cpuinfo("Features : fp asimd\n"));
}

#[test]
fn metrics_listen_only_where_told_and_on_loopback_unless_said_otherwise() {
    let base = "name = \"a\"\ndata_dir = \"/d\"\n";
    assert_eq!(parse(base).expect("valid").listen.metrics, None);
    let at = |address: &str| format!("{base}[listen]\nmetrics = \"{address}\"\n");
    let config = parse(&at("127.0.0.1:7402")).expect("valid");
    assert!(config.listen.metrics.is_some() && !config.listens_beyond_loopback());
    assert!(error(&at("10.0.0.1:7402")).contains("insecure_plaintext = true"));
    assert!(error(&at("127.0.0.1:7401")).contains("another listener"));
    assert!(error(&at("127.0.0.1:0")).contains("port 0"));
    let public = parse(&format!("insecure_plaintext = true\n{}", at("10.0.0.1:7402"))).expect("valid");
    assert!(public.listens_beyond_loopback());
}

#[test]
fn a_domain_of_names_is_one() {
    let with = |domain: &str| format!("name = \"a\"\ndata_dir = \"/d\"\nidmap_domain = \"{domain}\"\n");
    assert_eq!(parse(&with("example.org")).expect("valid").idmap_domain.as_deref(), Some("example.org"));
    for bad in ["", "a..b", ".org", "a b", "ann@example.org"] {
        assert!(error(&with(bad)).contains("is no domain"), "{bad}");
    }
}
