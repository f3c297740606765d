//! Which package may import which (docs/architecture.md, "Imports").

use anyhow::Result;
use serde::Deserialize;

use super::Finding;

const RULE: &str = "imports";

/// Crates that would bring a clock, a socket, a file, a thread or randomness into a pure package.
const IMPURE_CRATES: &[&str] =
    &["tokio", "rand", "rand_chacha", "mio", "socket2", "nix", "libc", "io-uring", "tempfile", "getrandom", "tracing"];

/// A package of the workspace, as `cargo metadata` tells it.
#[derive(Clone, Deserialize, Debug)]
pub(super) struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Clone, Deserialize, Debug)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing for a normal one.
    kind: Option<String>,
    optional: bool,
    /// Set for packages of this workspace only.
    path: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

enum Allowed {
    These(&'static [&'static str]),
    /// Anything but tests, benches and xtask.
    Product,
    /// That, and the library of the tests: its clusters and its devices.
    Measurements,
}

fn allowed(package: &str) -> Option<Allowed> {
    Some(match package {
        "proto" | "block-device" | "xtask" => Allowed::These(&[]),
        "replication" => Allowed::These(&["proto"]),
        "filesystem" | "gateway-nbd" => Allowed::These(&["block-device"]),
        "gateway-nfs" | "gateway-smb" => Allowed::These(&["filesystem", "block-device"]),
        "fuzz-harness" => Allowed::These(&["filesystem", "block-device", "gateway-nfs"]),
        "storage-node" | "tandem-tests" => Allowed::Product,
        "tandem-benches" => Allowed::Measurements,
        _ => return None,
    })
}

/// Packages whose normal dependencies must be pure too. Optional ones are behind a feature that the cores do not set.
const PURE_PACKAGES: &[&str] = &["proto", "replication"];

/// Packages that nobody imports; but the benches may import the tests.
const LEAVES: &[&str] = &["tandem-tests", "tandem-benches", "fuzz-harness", "xtask"];

/// Reads the output of `cargo metadata --no-deps`.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Package>> {
    Ok(serde_json::from_slice::<Metadata>(json)?.packages)
}

/// Compares every dependency with the table.
pub(super) fn check(packages: &[Package]) -> Vec<Finding> {
    packages.iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<Finding> {
    let place = format!("{} (Cargo.toml)", package.name);
    let Some(allowed) = allowed(&package.name) else {
        let message =
            format!("package `{}` has no line in the import table of xtask/src/check/imports.rs", package.name);
        return vec![Finding::error(RULE, &place, 0, message)];
    };
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        if dependency.path.is_some() {
            let fine = match allowed {
                Allowed::These(names) => names.contains(&name),
                Allowed::Product => !LEAVES.contains(&name),
                Allowed::Measurements => name == "tandem-tests" || !LEAVES.contains(&name),
            };
            if !fine {
                findings.push(Finding::error(RULE, &place, 0, format!("`{}` must not import `{name}`", package.name)));
            }
        } else if PURE_PACKAGES.contains(&package.name.as_str())
            && dependency.kind.is_none()
            && !dependency.optional
            && IMPURE_CRATES.contains(&name)
        {
            findings.push(Finding::error(
                RULE,
                &place,
                0,
                format!("pure package `{}` must not use `{name}`", package.name),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, ours: &[&str], others: &[(&str, bool, Option<&str>)]) -> Package {
        let dependency = |name: &str, optional, kind: Option<&str>, path: Option<&str>| Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            optional,
            path: path.map(str::to_owned),
        };
        let ours = ours.iter().map(|name| dependency(name, false, None, Some("/w")));
        let others = others.iter().map(|(name, optional, kind)| dependency(name, *optional, *kind, None));
        Package { name: name.to_owned(), dependencies: ours.chain(others).collect() }
    }

    #[test]
    fn allowed_imports_pass() {
        let packages = [
            package("proto", &[], &[("bytes", false, None), ("tonic", true, None), ("tokio", false, Some("dev"))]),
            package("replication", &["proto"], &[]),
            package("gateway-nbd", &["block-device"], &[("tokio", false, None)]),
            package("storage-node", &["proto", "block-device", "replication", "gateway-nbd"], &[]),
            package("tandem-tests", &["storage-node", "replication"], &[]),
            package("tandem-benches", &["tandem-tests", "filesystem"], &[]),
        ];
        assert_eq!(check(&packages), []);
    }

    #[test]
    fn forbidden_imports_fail() {
        for (name, import) in [
            ("proto", "replication"),
            ("block-device", "proto"),
            ("replication", "block-device"),
            ("replication", "storage-node"),
            ("gateway-nbd", "gateway-nfs"),
            ("gateway-nfs", "gateway-nbd"),
            ("storage-node", "tandem-tests"),
            ("tandem-tests", "tandem-benches"),
            ("xtask", "proto"),
        ] {
            assert_eq!(check(&[package(name, &[import], &[])]).len(), 1, "{name} -> {import}");
        }
    }

    #[test]
    fn impure_crates_in_a_pure_package_fail() {
        assert_eq!(check(&[package("replication", &[], &[("tokio", false, None)])]).len(), 1);
        assert_eq!(check(&[package("proto", &[], &[("rand", false, None)])]).len(), 1);
    }

    #[test]
    fn a_package_missing_from_the_table_fails() {
        assert_eq!(check(&[package("gateway-ftp", &[], &[])]).len(), 1);
    }

    #[test]
    fn cargo_metadata_is_understood() {
        let json = br#"{"packages":[{"name":"proto","x":1,"dependencies":
            [{"name":"a","kind":null,"optional":false,"path":"/w/a"},{"name":"b","kind":"dev","optional":false}]}]}"#;
        let packages = parse(json).expect("valid metadata");
        assert_eq!(check(&packages).len(), 1);
    }
}
