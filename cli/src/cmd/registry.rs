//! Registries: names, credentials, `pull`, `push`, `login`, `logout`, `search`.

use std::io::{BufRead, IsTerminal, Write};
use std::process::{Command as Process, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};

use super::{Command, Done, Env, Failure, runner, text};
use crate::client::{self, escape, segment};
use crate::context::Global;
use crate::flags::{list, on, one};
use crate::fmt::progress;
use crate::fmt::template::List;

/// The key of Docker Hub's credentials.
const HUB: &str = "https://index.docker.io/v1/";

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["pull", "image pull"],
        usage: "[OPTIONS] NAME[:TAG|@DIGEST]",
        about: "Download an image from a registry",
        flags: &[&[
            on(Some('a'), "all-tags", "Download all tagged images in the repository"),
            on(None, "disable-content-trust", "Skip image verification (always so)"),
            one(None, "platform", "string", "Set platform if server is multi-platform capable"),
            on(Some('q'), "quiet", "Suppress verbose output"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(pull),
    },
    Command {
        names: &["push", "image push"],
        usage: "[OPTIONS] NAME[:TAG]",
        about: "Upload an image to a registry",
        flags: &[&[
            on(Some('a'), "all-tags", "Push all tags of an image to the repository"),
            on(None, "disable-content-trust", "Skip image signing (always so)"),
            one(None, "platform", "string", "Push a platform-specific manifest as a single-platform image"),
            on(Some('q'), "quiet", "Suppress verbose output"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(push),
    },
    Command {
        names: &["login"],
        usage: "[OPTIONS] [SERVER]",
        about: "Authenticate to a registry",
        flags: &[&[
            one(Some('p'), "password", "string", "Password or Personal Access Token (PAT)"),
            on(None, "password-stdin", "Take the Password or Personal Access Token (PAT) from stdin"),
            one(Some('u'), "username", "string", "Username"),
        ]],
        interspersed: true,
        args: (0, 1),
        run: runner!(login),
    },
    Command {
        names: &["logout"],
        usage: "[SERVER]",
        about: "Log out from a registry",
        flags: &[],
        interspersed: true,
        args: (0, 1),
        run: runner!(logout),
    },
    Command {
        names: &["search"],
        usage: "[OPTIONS] TERM",
        about: "Search Docker Hub for images",
        flags: &[&[
            list(Some('f'), "filter", "filter", "Filter output based on conditions provided"),
            one(None, "format", "string", "Pretty-print search using a Go template"),
            one(None, "limit", "int", "Max number of search results"),
            on(None, "no-trunc", "Don't truncate output"),
        ]],
        interspersed: true,
        args: (1, 1),
        run: runner!(search),
    },
];

/// `name:tag` and `name@digest` as name and the rest; a name without either has an empty rest.
pub fn split(image: &str) -> (String, String) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name.to_owned(), digest.to_owned());
    }
    let last = image.rfind('/').map_or(0, |at| at + 1);
    match image[last..].rfind(':') {
        Some(at) => (image[..last + at].to_owned(), image[last + at + 1..].to_owned()),
        None => (image.to_owned(), String::new()),
    }
}

/// The registry a name belongs to, as the key of its credentials.
fn server(name: &str) -> String {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => {
            if first == "docker.io" || first == "index.docker.io" { HUB.into() } else { first.to_owned() }
        }
        _ => HUB.into(),
    }
}

/// The `X-Registry-Auth` header for an image's registry: what is stored for it, or `{}`.
///
/// # Errors
/// config.json cannot be read.
pub fn header(global: &Global, name: &str) -> Result<String, Failure> {
    let auth = stored(global, &server(name))?.unwrap_or_else(|| json!({}));
    Ok(URL_SAFE.encode(auth.to_string()))
}

/// The credentials stored for a registry, from its helper or config.json.
fn stored(global: &Global, server: &str) -> Result<Option<Value>, Failure> {
    let file = global.config_file()?;
    if let Some(helper) = helper(&file, server) {
        let Ok(output) = call_helper(&helper, "get", server) else { return Ok(None) };
        let Ok(found) = serde_json::from_str::<Value>(&output) else { return Ok(None) };
        let (user, secret) = (text(&found, "Username"), text(&found, "Secret"));
        return Ok(Some(if user == "<token>" {
            json!({"identitytoken": secret, "serveraddress": server})
        } else {
            json!({"username": user, "password": secret, "serveraddress": server})
        }));
    }
    let entry = &file["auths"][server];
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Ok(Some(json!({"identitytoken": token, "serveraddress": server})));
    }
    let Some(decoded) = entry["auth"].as_str().and_then(|auth| STANDARD.decode(auth).ok()) else {
        return Ok(None);
    };
    let decoded = String::from_utf8_lossy(&decoded).into_owned();
    let (user, password) = decoded.split_once(':').unwrap_or((&decoded, ""));
    Ok(Some(json!({"username": user, "password": password, "serveraddress": server})))
}

/// The credential helper for a registry: its own, or the general store.
fn helper(file: &Value, server: &str) -> Option<String> {
    let own = file["credHelpers"][server].as_str();
    own.or(file["credsStore"].as_str()).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Runs `docker-credential-NAME VERB` with `input`.
fn call_helper(name: &str, verb: &str, input: &str) -> Result<String, Failure> {
    let program = format!("docker-credential-{name}");
    let failed = |what: String| Failure::new(format!("error getting credentials - err: {what}"));
    let mut child = Process::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|err| failed(format!("exec: {program:?}: {err}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(said) } else { Err(failed(said)) }
}

async fn pull(env: &Env) -> Done {
    let image = env.arg(0);
    let quiet = env.parsed.on("quiet");
    let all = env.parsed.on("all-tags");
    let (name, mut tag) = split(image);
    if all && !tag.is_empty() {
        return Err(Failure::new("tag can't be used with --all-tags/-a"));
    }
    if tag.is_empty() && !all {
        tag = "latest".into();
        if !quiet {
            println!("Using default tag: latest");
        }
    }
    let mut path = format!("/images/create?fromImage={}", escape(&name));
    if !all {
        path.push_str(&format!("&tag={}", escape(&tag)));
    }
    if let Some(platform) = env.parsed.last("platform") {
        path.push_str(&format!("&platform={}", escape(platform)));
    }
    let auth = header(&env.global, &name)?;
    let response =
        env.client.open(http::Method::POST, &path, &[("X-Registry-Auth", &auth)], client::empty()).await?;
    progress::show(response.into_body(), quiet)
        .await
        .map_err(|err| Failure::new(format!("Error response from daemon: {err}")))?;
    if !all {
        println!("{}", full_name(&name, &tag));
    }
    Ok(())
}

/// The name with what the user left out.
fn full_name(name: &str, tag: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    let has_host = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let name = match (has_host, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    if tag.contains(':') { format!("{name}@{tag}") } else { format!("{name}:{tag}") }
}

async fn push(env: &Env) -> Done {
    let (name, mut tag) = split(env.arg(0));
    let (all, quiet) = (env.parsed.on("all-tags"), env.parsed.on("quiet"));
    if all && !tag.is_empty() {
        return Err(Failure::new("tag can't be used with --all-tags/-a"));
    }
    if !all && tag.is_empty() {
        tag = "latest".into();
        if !quiet {
            println!("Using default tag: latest");
        }
    }
    let mut path = format!("/images/{}/push?", segment(&name));
    if !all {
        path.push_str(&format!("tag={}", escape(&tag)));
    }
    if let Some(platform) = env.parsed.last("platform") {
        path.push_str(&format!("&platform={}", escape(platform)));
    }
    let auth = header(&env.global, &name)?;
    let response =
        env.client.open(http::Method::POST, &path, &[("X-Registry-Auth", &auth)], client::empty()).await?;
    progress::show(response.into_body(), quiet).await.map_err(Failure::new)?;
    if quiet {
        println!("{}", full_name(&name, &tag));
    }
    Ok(())
}

/// Writes config.json, whole and for nobody else's eyes.
///
/// # Errors
/// The file cannot be written.
pub fn save_config(global: &Global, file: &Value) -> Done {
    let dir = global.config_dir();
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("config.json");
    let pretty =
        serde_json::to_string_pretty(file).map_err(|err| Failure::new(err.to_string()))?.replace("  ", "\t");
    // Whole or not at all, and for nobody else's eyes.
    let temporary = dir.join(format!(".config.json.{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.write(true).create(true).truncate(true).open(&temporary)?;
    out.write_all(pretty.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    Ok(())
}

fn asked_server(env: &Env) -> String {
    match env.arg(0) {
        "" | "docker.io" | "index.docker.io" => HUB.into(),
        server => server
            .trim_start_matches("https://")
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned(),
    }
}

async fn login(env: &Env) -> Done {
    let server = asked_server(env);
    let parsed = &env.parsed;
    if parsed.on("password-stdin") && parsed.has("password") {
        return Err(Failure::new("conflicting options: cannot specify both --password and --password-stdin"));
    }
    if parsed.on("password-stdin") && !parsed.has("username") {
        return Err(Failure::new("the --password-stdin option requires --username to be set"));
    }
    let mut user = parsed.text("username").to_owned();
    let mut password = parsed.text("password").to_owned();
    if parsed.has("password") {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    let mut lines = std::io::stdin().lock().lines();
    if parsed.on("password-stdin") {
        password = lines.map_while(Result::ok).collect::<Vec<_>>().join("\n");
    } else if user.is_empty() || password.is_empty() {
        if let Some(known) = stored(&env.global, &server)?.filter(|_| user.is_empty()) {
            eprintln!("Authenticating with existing credentials...");
            return finish_login(env, &server, known).await;
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::new("Error: Cannot perform an interactive login from a non TTY device"));
        }
        if user.is_empty() {
            eprint!("Username: ");
            user = lines.next().transpose()?.unwrap_or_default().trim().to_owned();
        }
        if password.is_empty() {
            eprint!("Password: ");
            password = hidden(&mut lines)?;
        }
    }
    let auth = json!({"username": user, "password": password.trim_end_matches(['\r', '\n']), "serveraddress": server});
    finish_login(env, &server, auth).await
}

/// A line that does not show while it is typed.
fn hidden(lines: &mut std::io::Lines<std::io::StdinLock<'_>>) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet).map_err(std::io::Error::from)?;
    let line = lines.next().transpose();
    tcsetattr(std::io::stdin(), OptionalActions::Now, &before).map_err(std::io::Error::from)?;
    eprintln!();
    Ok(line?.unwrap_or_default())
}

async fn finish_login(env: &Env, server: &str, auth: Value) -> Done {
    let answer = env.client.post("/auth", Some(&auth)).await?;
    let mut file = env.global.config_file()?;
    let token = text(&answer, "IdentityToken");
    if let Some(helper) = helper(&file, server) {
        let (user, secret) = if token.is_empty() {
            (text(&auth, "username"), text(&auth, "password"))
        } else {
            ("<token>", token)
        };
        call_helper(
            &helper,
            "store",
            &json!({"ServerURL": server, "Username": user, "Secret": secret}).to_string(),
        )?;
        file["auths"][server] = json!({});
    } else {
        let pair = format!(
            "{}:{}",
            text(&auth, "username"),
            if token.is_empty() { text(&auth, "password") } else { "" }
        );
        file["auths"][server] = json!({"auth": STANDARD.encode(pair)});
        if !token.is_empty() {
            file["auths"][server]["identitytoken"] = token.into();
        }
        eprintln!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n",
            env.global.config_dir().join("config.json").display()
        );
    }
    save_config(&env.global, &file)?;
    println!("{}", text(&answer, "Status"));
    Ok(())
}

async fn logout(env: &Env) -> Done {
    let server = asked_server(env);
    let mut file = env.global.config_file()?;
    if file["auths"].get(&server).is_none() {
        println!("Not logged in to {server}");
        return Ok(());
    }
    println!("Removing login credentials for {server}");
    if let Some(helper) = helper(&file, &server) {
        call_helper(&helper, "erase", &server)?;
    }
    if let Some(auths) = file["auths"].as_object_mut() {
        auths.remove(&server);
    }
    save_config(&env.global, &file)
}

async fn search(env: &Env) -> Done {
    let limit = env.parsed.int("limit")?.unwrap_or(0);
    let path = format!("/images/search?term={}&limit={limit}&filters={}", escape(env.arg(0)), env.filters()?);
    let found = env.client.get(&path).await?;
    let rows = found.as_array().into_iter().flatten().map(|row| {
        let mut about = text(row, "description").replace(['\n', '\r'], " ");
        if !env.parsed.on("no-trunc") && about.chars().count() > 45 {
            about = about.chars().take(44).collect::<String>() + "…";
        }
        json!({
            "Name": text(row, "name"),
            "Description": about,
            "StarCount": row["star_count"].to_string(),
            "IsOfficial": if row["is_official"] == true { "[OK]" } else { "" },
        })
    });
    let list = List {
        columns: &[
            ("Name", "NAME"),
            ("Description", "DESCRIPTION"),
            ("StarCount", "STARS"),
            ("IsOfficial", "OFFICIAL"),
        ],
        shown: &["Name", "Description", "StarCount", "IsOfficial"],
        rows: rows.collect(),
    };
    print!("{}", list.print(env.parsed.text("format"))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_and_fill_up() {
        assert_eq!(split("127.0.0.1:5000/a/b:1"), ("127.0.0.1:5000/a/b".into(), "1".into()));
        assert_eq!(split("127.0.0.1:5000/a"), ("127.0.0.1:5000/a".into(), String::new()));
        assert_eq!(split("a@sha256:00"), ("a".into(), "sha256:00".into()));
        assert_eq!(full_name("a", "latest"), "docker.io/library/a:latest");
        assert_eq!(full_name("h:5000/a", "1"), "h:5000/a:1");
        assert_eq!(server("a/b"), HUB);
        assert_eq!(server("h:5000/a"), "h:5000");
    }
}
