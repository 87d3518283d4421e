//! How single values of the configuration file are read: deserializers for
//! serde's `deserialize_with`, each of which says what it allows.
//!
//! Serde's own will not do in three places. Derived structs also read arrays, by
//! position; maps let the last one of equal keys win; and a list that is empty
//! in Lua arrives as `{}`, since Lua has one empty table for both.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::uri::Authority;
use ipnet::IpNet;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Discover, InstanceKeys, ServiceConfig};
use crate::model::{Allow, Instance, StatusUrl, is_name, parse_addr};

// === objects and lists ===

/// A value that is written as a JSON object and in no other way.
pub struct Object<T>(pub T);

/// Reads a section.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Object::deserialize(from).map(|Object(section)| section)
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        from.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Reads an object whose keys are the user's, each at most once.
pub fn unique_keys<'de, D, K, V>(from: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Into<String>,
    V: Deserialize<'de>,
{
    struct UniqueKeysVisitor<K, V>(PhantomData<(K, V)>);

    impl<'de, K, V> Visitor<'de> for UniqueKeysVisitor<K, V>
    where
        K: Deserialize<'de> + Into<String>,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<K, V>()? {
                match entries.entry(key.into()) {
                    Entry::Vacant(unseen) => _ = unseen.insert(value),
                    Entry::Occupied(first) => {
                        return Err(A::Error::custom(format_args!(
                            "duplicate key {:?}",
                            first.key()
                        )));
                    }
                }
            }
            Ok(entries)
        }
    }

    from.deserialize_map(UniqueKeysVisitor::<K, V>(PhantomData))
}

/// A list; an empty one may also be written `{}`.
pub struct List<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(List)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(List(Vec::new())),
                    Some(_) => Err(A::Error::invalid_type(Unexpected::Map, &self)),
                }
            }
        }

        from.deserialize_any(ListVisitor(PhantomData))
    }
}

// === numbers ===

/// Reads an integer from `MIN` to `MAX`.
pub fn integer<'de, const MIN: u64, const MAX: u64, T, D>(from: D) -> Result<T, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'de>,
{
    struct IntegerVisitor<const MIN: u64, const MAX: u64, T>(PhantomData<T>);

    impl<const MIN: u64, const MAX: u64, T: TryFrom<u64>> Visitor<'_> for IntegerVisitor<MIN, MAX, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "an integer from {MIN} to {MAX}")
        }

        fn visit_u64<E: Error>(self, found: u64) -> Result<T, E> {
            Some(found)
                .filter(|found| (MIN..=MAX).contains(found))
                .and_then(|found| T::try_from(found).ok())
                .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(found), &self))
        }

        fn visit_i64<E: Error>(self, found: i64) -> Result<T, E> {
            Err(E::invalid_value(Unexpected::Signed(found), &self))
        }
    }

    from.deserialize_any(IntegerVisitor::<MIN, MAX, T>(PhantomData))
}

/// Reads a bound in percent of a share, which must leave room, or 0 for none.
pub fn hash_balance_factor<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match integer::<0, 1000, u32, D>(from)? {
        tight @ 1..=100 => Err(D::Error::invalid_value(
            Unexpected::Unsigned(tight.into()),
            &"0 or an integer from 101 to 1000",
        )),
        percent => Ok(percent),
    }
}

/// Reads a number from `MIN` to `MAX`, with or without a fraction.
pub fn number<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    from: D,
) -> Result<f64, D::Error> {
    struct NumberVisitor<const MIN: u64, const MAX: u64>;

    impl<const MIN: u64, const MAX: u64> Visitor<'_> for NumberVisitor<MIN, MAX> {
        type Value = f64;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a number from {MIN} to {MAX}")
        }

        fn visit_f64<E: Error>(self, found: f64) -> Result<f64, E> {
            match (MIN as f64..=MAX as f64).contains(&found) {
                true => Ok(found),
                false => Err(E::invalid_value(Unexpected::Float(found), &self)),
            }
        }

        fn visit_u64<E: Error>(self, found: u64) -> Result<f64, E> {
            self.visit_f64(found as f64)
        }

        fn visit_i64<E: Error>(self, found: i64) -> Result<f64, E> {
            self.visit_f64(found as f64)
        }
    }

    from.deserialize_any(NumberVisitor::<MIN, MAX>)
}

/// Reads a duration with its unit, from `MIN` to `MAX` milliseconds.
pub fn duration_ms<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    from: D,
) -> Result<Duration, D::Error> {
    let range = Duration::from_millis(MIN)..=Duration::from_millis(MAX);
    let expected = format!(
        r#"a duration with a unit, such as "1s" or "250ms", from {} to {}"#,
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end())
    );
    string_that_is(&expected, from, |text| {
        humantime::parse_duration(text).ok().filter(|found| range.contains(found))
    })
}

// === strings ===

/// Values that have names in the configuration file.
pub trait Choice: Copy + 'static {
    /// Every value, after its name.
    const ALL: &'static [(&'static str, Self)];
}

/// Reads one of a few names.
pub fn choice<'de, D: Deserializer<'de>, T: Choice>(from: D) -> Result<T, D::Error> {
    let names: Vec<_> = T::ALL.iter().map(|(name, _)| *name).collect();
    let expected = format!("one of {}", names.join(", "));
    string_that_is(&expected, from, |text| {
        T::ALL.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
    })
}

/// Reads the name of a service, an instance or an exporter.
pub fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("a name: 1 to 128 characters out of A-Z a-z 0-9 . _ : -", from, |text| {
        is_name(text).then(|| text.to_owned())
    })
}

/// Reads an IP address with a port.
pub fn addr<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    string("an IP address with a port, such as 10.0.0.5:8080", from, parse_addr)
}

/// Reads where and how an instance is asked for its status.
pub fn status_url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<StatusUrl>, D::Error> {
    string("a status URL, such as grpc://10.0.0.5:9090 or orcas://10.0.0.5:9090", from, str::parse)
        .map(Some)
}

/// Reads the prefix of etcd's keys.
pub fn etcd_prefix<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("a path that begins with / and does not end with it", from, |text| {
        (text.starts_with('/') && !text.ends_with('/')).then(|| text.to_owned())
    })
}

/// Reads the path of the snapshot.
pub fn snapshot_path<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("an absolute path, or empty for no snapshot", from, |text| {
        (text.is_empty() || text.starts_with('/')).then(|| text.to_owned())
    })
}

/// Reads a string that `parse` takes; all others are not `expected`.
pub fn string_that_is<'de, D: Deserializer<'de>, T>(
    expected: &str,
    from: D,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    string(expected, from, |text| parse(text).ok_or_else(|| format!("{text:?} is not {expected}")))
}

/// Reads a string by `parse`, whose error says what was found and what is
/// allowed. `expected` says it to who wrote no string.
fn string<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    expected: &str,
    from: D,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    struct StringVisitor<'a, P> {
        expected: &'a str,
        parse: P,
    }

    impl<T, E: fmt::Display, P: FnOnce(&str) -> Result<T, E>> Visitor<'_> for StringVisitor<'_, P> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str(self.expected)
        }

        fn visit_str<S: Error>(self, found: &str) -> Result<T, S> {
            (self.parse)(found).map_err(S::custom)
        }
    }

    from.deserialize_str(StringVisitor { expected, parse })
}

// === single keys ===

/// Reads `services`.
pub fn services<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, ServiceConfig>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Name(#[serde(deserialize_with = "name")] String);

    impl From<Name> for String {
        fn from(Name(name): Name) -> Self {
            name
        }
    }

    let services = unique_keys::<D, Name, Object<ServiceConfig>>(from)?;
    Ok(services.into_iter().map(|(name, Object(service))| (name, service)).collect())
}

/// Reads `services.<service>.instances`.
pub fn instances<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Instance>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Keys(#[serde(deserialize_with = "InstanceKeys::deserialize")] Instance);

    let List(entries) = List::<Object<Keys>>::deserialize(from)?;
    Ok(entries.into_iter().map(|Object(Keys(instance))| instance).collect())
}

/// Reads `etcd.endpoints`.
pub fn endpoints<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Endpoint(#[serde(deserialize_with = "endpoint")] String);

    let List(endpoints) = List::<Endpoint>::deserialize(from)?;
    match endpoints.is_empty() {
        true => Err(D::Error::custom("the list is empty, expected at least one endpoint")),
        false => Ok(endpoints.into_iter().map(|Endpoint(url)| url).collect()),
    }
}

fn endpoint<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("an endpoint: http://HOST:PORT or https://HOST:PORT", from, |text| {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
        let authority = Authority::from_str(rest).ok()?;
        let plain = !authority.host().is_empty() && !rest.contains('@');
        (plain && authority.port_u16().is_some_and(|port| port != 0)).then(|| text.to_owned())
    })
}

/// Reads `allow`.
pub fn allow<'de, D: Deserializer<'de>>(from: D) -> Result<Allow, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Net(#[serde(deserialize_with = "net")] IpNet);

    let List(nets) = List::<Net>::deserialize(from)?;
    Ok(Allow(nets.into_iter().map(|Net(net)| net).collect()))
}

fn net<'de, D: Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
    let expected = "a network in CIDR notation, such as 10.0.0.0/8 or fd00::/8, with no bit set after the prefix";
    string_that_is(expected, from, |text| {
        text.parse::<IpNet>().ok().filter(|net| net.addr() == net.network())
    })
}

/// Reads `discover`.
pub fn discover<'de, D: Deserializer<'de>>(from: D) -> Result<Discover, D::Error> {
    struct DiscoverVisitor;

    impl<'de> Visitor<'de> for DiscoverVisitor {
        type Value = Discover;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("true, false or a list of service names")
        }

        fn visit_bool<E: Error>(self, all: bool) -> Result<Discover, E> {
            Ok(if all { Discover::All } else { Discover::None })
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Discover, A::Error> {
            names(SeqAccessDeserializer::new(seq))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Discover, A::Error> {
            names(MapAccessDeserializer::new(map))
        }
    }

    fn names<'de, D: Deserializer<'de>>(from: D) -> Result<Discover, D::Error> {
        #[derive(Deserialize)]
        #[serde(transparent)]
        struct Pattern(#[serde(deserialize_with = "name_pattern")] String);

        let List(names) = List::<Pattern>::deserialize(from)?;
        Ok(Discover::Names(names.into_iter().map(|Pattern(name)| name).collect()))
    }

    from.deserialize_any(DiscoverVisitor)
}

fn name_pattern<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let expected = "a name of characters out of A-Z a-z 0-9 . _ : -, or the beginning of one and *";
    string_that_is(expected, from, |text| {
        let allowed = match text.strip_suffix('*') {
            Some(prefix) => prefix.is_empty() || is_name(prefix),
            None => is_name(text),
        };
        allowed.then(|| text.to_owned())
    })
}
