//! Reading `--volume` and `--mount`, with Docker's refusals.

use docker_api::Mount;
use docker_api::mount::DriverConfig;

use super::{MountPoint, ReadOnly, Source, clean, tmpfs_of_mount};
use crate::error::{Error, Result};

/// A mount a client asks for. A volume has no name yet if the client gave none; an image was not looked up yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The mount.
    pub point: MountPoint,
    /// Of a volume that has to be made.
    pub volume: Option<NewVolume>,
}

/// What a volume is made with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewVolume {
    /// Its driver and options.
    pub driver: DriverConfig,
    /// Its labels.
    pub labels: Option<std::collections::BTreeMap<String, String>>,
}

const PROPAGATIONS: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];
const CONSISTENCIES: &[&str] = &["default", "consistent", "cached", "delegated"];

/// The parts of a `--volume`'s mode.
#[derive(Default)]
struct Mode<'a> {
    read_only: Option<bool>,
    propagation: Option<&'a str>,
    no_copy: bool,
}

fn mode(text: &str) -> Option<Mode<'_>> {
    let mut mode = Mode::default();
    let (mut labels, mut consistencies, mut copies) = (0, 0, 0);
    if text.is_empty() {
        return Some(mode);
    }
    for word in text.split(',') {
        match word {
            "rw" | "ro" if mode.read_only.is_some() => return None,
            "rw" => mode.read_only = Some(false),
            "ro" => mode.read_only = Some(true),
            "z" | "Z" => labels += 1,
            "nocopy" => {
                copies += 1;
                mode.no_copy = true;
            }
            word if PROPAGATIONS.contains(&word) && mode.propagation.is_none() => {
                mode.propagation = Some(word)
            }
            word if CONSISTENCIES.contains(&word) => consistencies += 1,
            _ => return None,
        }
    }
    (labels < 2 && consistencies < 2 && copies < 2).then_some(mode)
}

/// Whether a `--volumes-from` mode lets the container write.
pub fn mode_is_writable(text: &str) -> bool {
    mode(text).is_some_and(|mode| mode.read_only != Some(true))
}

/// `container[:mode]` of `--volumes-from`.
///
/// # Errors
/// The mode is none.
pub fn split_volumes_from(text: &str) -> Result<(&str, &str)> {
    if text.is_empty() {
        return Err(Error::invalid("volumes-from specification cannot be an empty string"));
    }
    let (container, how) = text.split_once(':').unwrap_or((text, "rw"));
    match mode(how) {
        Some(mode) if !mode.no_copy => Ok((container, how)),
        _ => Err(Error::invalid(format!("invalid mode: {how}"))),
    }
}

/// Reads `source:target[:mode]`.
///
/// # Errors
/// The text is none; Docker answers 500 to some of these, we 400.
pub fn from_bind(text: &str, volume_driver: &str) -> Result<Wanted> {
    let invalid = || Error::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    let (source, target, how) = match parts.as_slice() {
        ["", ..] => return Err(invalid()),
        [target] => ("", *target, ""),
        // A volume with a mode has a source too.
        [_, how] if mode(how).is_some() => return Err(invalid()),
        [source, target] => (*source, *target, ""),
        [source, target, how] => (*source, *target, *how),
        _ => return Err(invalid()),
    };
    let mode = mode(how).ok_or_else(|| Error::invalid(format!("invalid mode: {how}")))?;
    let is_bind = source.starts_with('/');
    let kind = if is_bind { "bind" } else { "volume" };
    check_target(kind, target)
        .and_then(|()| match mode.propagation {
            Some(_) if !is_bind => Err(config(kind, "field BindOptions must not be specified")),
            _ if is_bind && mode.no_copy => Err(config(kind, "field VolumeOptions must not be specified")),
            _ => Ok(()),
        })
        .map_err(|err| err.context(format!("invalid volume specification: '{text}'")))?;
    let source = if is_bind {
        Source::Bind {
            path: clean(source),
            create: true,
            non_recursive: false,
            read_only: ReadOnly::AsPossible,
        }
    } else {
        volume(source, !mode.no_copy, "")
    };
    let named = matches!(&source, Source::Volume { anonymous: false, .. });
    let point = MountPoint {
        destination: clean(target),
        writable: mode.read_only != Some(true),
        // Docker shows a named volume without a mode so.
        mode: if how.is_empty() && named { "z".into() } else { how.to_owned() },
        propagation: if is_bind { mode.propagation.unwrap_or("rprivate").to_owned() } else { String::new() },
        source,
    };
    let driver = DriverConfig { name: volume_driver.to_owned(), options: None };
    Ok(Wanted { point, volume: (!is_bind).then_some(NewVolume { driver, labels: None }) })
}

fn volume(name: &str, copy: bool, subpath: &str) -> Source {
    Source::Volume {
        name: name.to_owned(),
        driver: String::new(),
        anonymous: name.is_empty(),
        copy,
        subpath: subpath.to_owned(),
        path: String::new(),
    }
}

fn config(kind: &str, text: &str) -> Error {
    Error::invalid(format!("invalid mount config for type \"{kind}\": {text}"))
}

fn check_target(kind: &str, target: &str) -> Result<()> {
    if target.is_empty() {
        return Err(config(kind, "field Target must not be empty"));
    }
    if target.starts_with('/') && clean(target) == "/" {
        return Err(config(kind, "invalid specification: destination can't be '/'"));
    }
    check_absolute(kind, target)
}

fn check_absolute(kind: &str, path: &str) -> Result<()> {
    if path.starts_with('/') {
        return Ok(());
    }
    Err(config(kind, &format!("invalid mount path: '{path}' mount path must be absolute")))
}

/// Whether a path stays below where it starts, going by its text.
fn is_local(path: &str) -> bool {
    let mut depth = 0_i32;
    !path.starts_with('/')
        && path.split('/').all(|part| {
            match part {
                "" | "." => {}
                ".." => depth -= 1,
                _ => depth += 1,
            }
            depth >= 0
        })
}

/// Reads a mount in the newer form. Options of another kind of mount are refused before (they depend on the API version).
///
/// # Errors
/// The mount is none.
pub fn from_mount(mount: &Mount) -> Result<Wanted> {
    let kind = mount.kind.as_str();
    if !matches!(kind, "bind" | "volume" | "tmpfs" | "image") {
        return Err(config(kind, "mount type unknown"));
    }
    check_target(kind, &mount.target)?;
    let mut made = None;
    let mut writable = !mount.read_only;
    let (source, mode, propagation) = match kind {
        "bind" => {
            let (source, propagation) = bind(mount)?;
            (source, "", propagation)
        }
        "volume" => {
            let options = mount.volume_options.clone().unwrap_or_default();
            if mount.source.is_empty() && mount.read_only {
                return Err(config(kind, "must not set ReadOnly mode when using anonymous volumes"));
            }
            if !is_local(&options.subpath) {
                return Err(config(kind, "subpath must be a relative path within the volume"));
            }
            made =
                Some(NewVolume { driver: options.driver_config.unwrap_or_default(), labels: options.labels });
            let mode = if mount.source.is_empty() { "" } else { "z" };
            (volume(&mount.source, !options.no_copy, &options.subpath), mode, String::new())
        }
        "image" => {
            if mount.source.is_empty() {
                return Err(config(kind, "field Source must not be empty"));
            }
            let subpath = mount.image_options.clone().unwrap_or_default().subpath;
            if !is_local(&subpath) {
                return Err(config(kind, "subpath must be a relative path within the volume"));
            }
            writable = false;
            (Source::Image { reference: mount.source.clone(), id: String::new(), subpath }, "", String::new())
        }
        _ => {
            if !mount.source.is_empty() {
                return Err(config(kind, "field Source must not be specified"));
            }
            let options = tmpfs_of_mount(mount).map_err(|err| config(kind, err.message()))?;
            (Source::Tmpfs { options }, "", String::new())
        }
    };
    let point =
        MountPoint { source, destination: clean(&mount.target), writable, mode: mode.into(), propagation };
    Ok(Wanted { point, volume: made })
}

fn bind(mount: &Mount) -> Result<(Source, String)> {
    let kind = "bind";
    if mount.source.is_empty() {
        return Err(config(kind, "field Source must not be empty"));
    }
    let options = mount.bind_options.clone().unwrap_or_default();
    if !options.propagation.is_empty() && !PROPAGATIONS.contains(&options.propagation.as_str()) {
        return Err(config(kind, &format!("invalid propagation mode: {}", options.propagation)));
    }
    if options.read_only_non_recursive && options.read_only_force_recursive {
        let text = "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive";
        return Err(config(kind, text));
    }
    check_absolute(kind, &mount.source)?;
    let read_only = if options.read_only_non_recursive {
        ReadOnly::Top
    } else if options.read_only_force_recursive {
        ReadOnly::Recursive
    } else {
        ReadOnly::AsPossible
    };
    let source = Source::Bind {
        path: clean(&mount.source),
        create: options.create_mountpoint,
        non_recursive: options.non_recursive,
        read_only,
    };
    let propagation = if options.propagation.is_empty() { "rprivate".into() } else { options.propagation };
    Ok((source, propagation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, expect: Expect) {
        let shown = match from_bind(text, "") {
            Ok(wanted) => {
                let shown = wanted.point.shown();
                let name = wanted.point.volume().unwrap_or("-").to_owned();
                format!(
                    "{} {}|{} -> {} mode={} rw={} {}",
                    shown.kind,
                    name,
                    shown.source,
                    shown.destination,
                    shown.mode,
                    shown.rw,
                    shown.propagation
                )
            }
            Err(err) => err.message().to_owned(),
        };
        expect.assert_eq(&shown);
    }

    #[test]
    fn binds() {
        check("/tmp:/x", expect!["bind -|/tmp -> /x mode= rw=true rprivate"]);
        check("/tmp/../a//b:/x/:ro,z,rslave", expect!["bind -|/a/b -> /x mode=ro,z,rslave rw=false rslave"]);
        check("vol:/x", expect!["volume vol| -> /x mode=z rw=true "]);
        check("vol:/x:nocopy,ro", expect!["volume vol| -> /x mode=nocopy,ro rw=false "]);
        check("/x", expect!["volume | -> /x mode= rw=true "]);
        check(
            "/tmp:x",
            expect![
                "invalid volume specification: '/tmp:x': invalid mount config for type \"bind\": invalid mount path: 'x' mount path must be absolute"
            ],
        );
        check("/tmp:/x:bogus", expect!["invalid mode: bogus"]);
        check("/tmp:/x:ro,rw", expect!["invalid mode: ro,rw"]);
        check("/a:/b:ro:z:q", expect!["invalid volume specification: '/a:/b:ro:z:q'"]);
        check(
            "/tmp:/",
            expect![
                "invalid volume specification: '/tmp:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"
            ],
        );
        check("/tmp:ro", expect!["invalid volume specification: '/tmp:ro'"]);
        check(":/x", expect!["invalid volume specification: ':/x'"]);
    }

    fn mount(json: &str, expect: Expect) {
        let mount: Mount = docker_api::json::from_slice(json.as_bytes()).unwrap();
        expect.assert_eq(&from_mount(&mount).map_or_else(
            |err| err.message().to_owned(),
            |wanted| {
                format!("{:?} {} {}", wanted.point.source, wanted.point.destination, wanted.point.writable)
            },
        ));
    }

    #[test]
    fn mounts() {
        mount(
            r#"{"Source":"/tmp","Target":"/x"}"#,
            expect![[r#"invalid mount config for type "": mount type unknown"#]],
        );
        mount(
            r#"{"Type":"bind","Source":"/tmp"}"#,
            expect![[r#"invalid mount config for type "bind": field Target must not be empty"#]],
        );
        mount(
            r#"{"Type":"volume","Source":"v","Target":"x"}"#,
            expect![[
                r#"invalid mount config for type "volume": invalid mount path: 'x' mount path must be absolute"#
            ]],
        );
        mount(
            r#"{"Type":"tmpfs","Target":"/"}"#,
            expect![[
                r#"invalid mount config for type "tmpfs": invalid specification: destination can't be '/'"#
            ]],
        );
        mount(
            r#"{"Type":"tmpfs","Source":"/tmp","Target":"/x"}"#,
            expect![[r#"invalid mount config for type "tmpfs": field Source must not be specified"#]],
        );
        mount(
            r#"{"Type":"bind","Target":"/x"}"#,
            expect![[r#"invalid mount config for type "bind": field Source must not be empty"#]],
        );
        mount(
            r#"{"Type":"bind","Source":"/t","Target":"/x","BindOptions":{"Propagation":"bogus"}}"#,
            expect![[r#"invalid mount config for type "bind": invalid propagation mode: bogus"#]],
        );
        mount(
            r#"{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"Subpath":"/abs"}}"#,
            expect![[
                r#"invalid mount config for type "volume": subpath must be a relative path within the volume"#
            ]],
        );
        mount(
            r#"{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"Subpath":"a/../../b"}}"#,
            expect![[
                r#"invalid mount config for type "volume": subpath must be a relative path within the volume"#
            ]],
        );
        mount(
            r#"{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":1048576,"Mode":448}}"#,
            expect![[r#"Tmpfs { options: "mode=700,size=1m" } /x true"#]],
        );
    }

    #[test]
    fn volumes_from() {
        assert_eq!(split_volumes_from("a").unwrap(), ("a", "rw"));
        assert_eq!(split_volumes_from("a:ro").unwrap(), ("a", "ro"));
        assert_eq!(split_volumes_from("a:bogus").unwrap_err().message(), "invalid mode: bogus");
        assert!(!mode_is_writable("ro") && mode_is_writable("rw"));
    }
}
