//! ORCA's load reports, from its stream and from the headers that a response may
//! carry beside what was asked for:
//!
//! ```text
//! endpoint-load-metrics: TEXT cpu_utilization=0.7,rps_fractional=1000,named_metrics.queue=3
//! endpoint-load-metrics: JSON {"cpu_utilization": 0.7, "namedMetrics": {"queue": 3}}
//! endpoint-load-metrics: BIN CWZmZmZmZuY/
//! endpoint-load-metrics-bin: CWZmZmZmZuY/
//! ```
//!
//! The formats are Envoy's (`orca_parser.cc`), and gRPC's for the last (A51). One
//! difference: a name that is not known is passed over, whatever its value is,
//! since servers name metrics of their own.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::shorten;
use super::xds::data::orca::v3::OrcaLoadReport;
use crate::reckon::{FigureError, Figures, MAX_UTILIZATION, check};

/// The longest header value that is read, in bytes: ten times what a report with
/// every field and a few metrics of the application's own takes.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Why the load report of a header was refused.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// It is too long to be parsed at all.
    #[error("refused a load report of {found_bytes} bytes: at most {MAX_HEADER_BYTES} are read")]
    TooLarge {
        /// Its size.
        found_bytes: usize,
    },
    /// It begins with none of the formats.
    #[error("failed to read a load report: it is none of TEXT, JSON and BIN")]
    Format,
    /// A part of a `TEXT` report is not a name with a value.
    #[error("failed to read {part:?} of a load report: {why}")]
    Text {
        /// The part as found, shortened.
        part: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A `JSON` report is not the message's JSON.
    #[error("failed to read a load report as JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// A binary report is not base64.
    #[error("failed to read a load report as base64: {0}")]
    Base64(#[source] base64::DecodeError),
    /// A binary report is not the protobuf message.
    #[error("failed to decode a load report: {0}")]
    Protobuf(#[source] prost::DecodeError),
    /// A figure is out of range.
    #[error("{0}")]
    Figure(#[from] FigureError),
}

/// The figures of a report. It is taken whole or not at all: where one figure
/// cannot be, the others may be no better.
///
/// # Errors
/// The first figure that cannot be. What is not used is not checked, but for
/// `mem_utilization`.
pub fn figures(report: &OrcaLoadReport) -> Result<Figures, FigureError> {
    let named = |name| report.named_metrics.get(name).copied();
    // There are no presence bits: 0 is what a server sends that cannot tell.
    let told = |figure: f64| (figure != 0.0).then_some(figure);
    #[expect(deprecated, reason = "older servers have no rps_fractional")]
    let rounded_rps = report.rps as f64;

    // Not used, but checked: it says what the rest is worth.
    check("mem_utilization", report.mem_utilization, MAX_UTILIZATION)?;
    let figures = Figures {
        cpu: told(report.cpu_utilization),
        application: told(report.application_utilization),
        requests_per_second: told(report.rps_fractional).unwrap_or(rounded_rps),
        errors_per_second: report.eps,
        latency_ms: named("latency_ms"),
        in_flight: named("inflight").or_else(|| named("in_flight")),
        queue: named("queue"),
    };
    figures.checked()
}

/// Reads the value of `endpoint-load-metrics`.
///
/// # Errors
/// [`HeaderError`] says what is wrong with it.
pub fn parse_header(value: &[u8]) -> Result<Figures, HeaderError> {
    refuse_too_large(value)?;
    let (format, report) = value.split_at_checked(5).unwrap_or((value, &[]));
    match format {
        b"TEXT " => Ok(figures(&parse_text(report)?)?),
        b"JSON " => Ok(figures(&parse_json(report)?)?),
        _ => parse_base64(value.strip_prefix(b"BIN ").ok_or(HeaderError::Format)?),
    }
}

/// Reads the value of `endpoint-load-metrics-bin`.
///
/// # Errors
/// [`HeaderError`] says what is wrong with it.
pub fn parse_binary_header(value: &[u8]) -> Result<Figures, HeaderError> {
    refuse_too_large(value)?;
    parse_base64(value)
}

fn refuse_too_large(value: &[u8]) -> Result<(), HeaderError> {
    match value.len() {
        found_bytes if found_bytes > MAX_HEADER_BYTES => Err(HeaderError::TooLarge { found_bytes }),
        _ => Ok(()),
    }
}

fn parse_base64(value: &[u8]) -> Result<Figures, HeaderError> {
    // gRPC leaves the padding out, others do not.
    const EITHER: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = EITHER.decode(value.trim_ascii()).map_err(HeaderError::Base64)?;
    let report = OrcaLoadReport::decode(bytes.as_slice()).map_err(HeaderError::Protobuf)?;
    Ok(figures(&report)?)
}

/// Reads `name=value,name:value …`.
fn parse_text(text: &[u8]) -> Result<OrcaLoadReport, HeaderError> {
    let (mut report, mut rps) = (OrcaLoadReport::default(), 0.0);
    let mut names = BTreeSet::new();
    for part in text.split(|byte| *byte == b',') {
        let refused = |why| {
            let part = shorten(&String::from_utf8_lossy(part)).into_owned();
            HeaderError::Text { part, why }
        };
        let at = part.iter().position(|byte| b"=:".contains(byte));
        let (name, value) = part.split_at(at.ok_or_else(|| refused("it has no value"))?);
        let name = name.trim_ascii();
        let is_name = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        let name = str::from_utf8(name).ok().filter(|_| is_name);
        let name = name.ok_or_else(|| refused("its name is none"))?;
        if !names.insert(name) {
            return Err(refused("the name came before"));
        }
        let value = str::from_utf8(&value[1..]).unwrap_or_default().trim_ascii();
        let number = || value.parse::<f64>().map_err(|_| refused("its value is not a number"));
        match name {
            "cpu_utilization" => report.cpu_utilization = number()?,
            "mem_utilization" => report.mem_utilization = number()?,
            "application_utilization" => report.application_utilization = number()?,
            "rps_fractional" => report.rps_fractional = number()?,
            "eps" => report.eps = number()?,
            "rps" => rps = number()?,
            _ => {
                if let Some(name) = name.strip_prefix("named_metrics.") {
                    report.named_metrics.insert(name.to_owned(), number().unwrap_or(f64::NAN));
                }
            }
        }
    }
    set_rounded_rps(&mut report, rps);
    Ok(report)
}

/// Reads the message's JSON: either spelling of a name, numbers also as strings,
/// null for what is not told.
fn parse_json(text: &[u8]) -> Result<OrcaLoadReport, HeaderError> {
    // serde would read a struct's fields from an array too.
    let is_object = text.trim_ascii_start().starts_with(b"{");
    let text = if is_object { text } else { &[] };
    let json: ReportJson = serde_json::from_slice(text).map_err(HeaderError::Json)?;
    let mut report = OrcaLoadReport {
        cpu_utilization: json.cpu_utilization.0,
        mem_utilization: json.mem_utilization.0,
        rps_fractional: json.rps_fractional.0,
        eps: json.eps.0,
        named_metrics: json.named_metrics.0,
        application_utilization: json.application_utilization.0,
        ..OrcaLoadReport::default()
    };
    set_rounded_rps(&mut report, json.rps.0);
    Ok(report)
}

/// The older figure stands for the newer where that is not told. Not as the whole
/// number that it ought to be, so that one that cannot be is found to be so.
fn set_rounded_rps(report: &mut OrcaLoadReport, rps: f64) {
    if report.rps_fractional == 0.0 {
        report.rps_fractional = rps;
    }
}

/// What of the message is read; what is not known is passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ReportJson {
    #[serde(alias = "cpuUtilization")]
    cpu_utilization: Number,
    #[serde(alias = "memUtilization")]
    mem_utilization: Number,
    #[serde(alias = "applicationUtilization")]
    application_utilization: Number,
    rps: Number,
    #[serde(alias = "rpsFractional")]
    rps_fractional: Number,
    eps: Number,
    #[serde(alias = "namedMetrics")]
    named_metrics: Numbers,
}

/// A number of proto3's JSON, which may be a string; 0 where it is null, and NaN,
/// which no figure may be, where it is no number.
#[derive(Default)]
struct Number(f64);

/// Numbers by names that differ.
#[derive(Default)]
struct Numbers(HashMap<String, f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }

            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number(text.parse().unwrap_or(f64::NAN)))
            }

            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number(0.0))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;

        impl<'de> Visitor<'de> for ByName {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_unit<E>(self) -> Result<Numbers, E> {
                Ok(Numbers::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Numbers, A::Error> {
                let mut numbers = Numbers::default();
                while let Some((name, number)) = map.next_entry::<String, Option<Number>>()? {
                    let number = number.map_or(f64::NAN, |number| number.0);
                    if numbers.0.insert(name, number).is_some() {
                        return Err(de::Error::custom("a name came before"));
                    }
                }
                Ok(numbers)
            }
        }

        deserializer.deserialize_any(ByName)
    }
}

#[cfg(test)]
mod tests;
