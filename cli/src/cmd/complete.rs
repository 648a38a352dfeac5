//! Completion at a shell's prompt: a short script a shell, which asks `docker __complete` for the words that fit.

use serde_json::Value;

use super::{Command, Done, Env, Failure, MANY, runner, text};

/// The commands of this module.
pub const COMMANDS: &[Command] = &[
    Command {
        names: &["completion"],
        usage: "bash|zsh|fish",
        about: "Generate the autocompletion script for the specified shell",
        flags: &[],
        interspersed: true,
        args: (1, 1),
        run: runner!(completion),
    },
    Command {
        names: &[ASK],
        usage: "[WORD...]",
        about: "Print the words that may stand in place of the last one",
        flags: &[],
        interspersed: false,
        args: (0, MANY),
        run: runner!(candidates),
    },
];

/// What the scripts ask; no command for people.
pub const ASK: &str = "__complete";

const BASH: &str = r#"_docker_rs() {
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _docker_rs docker docker-rs
"#;

const ZSH: &str = r#"#compdef docker docker-rs
_docker_rs() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if (( ${#found} )) && [[ -n "${found[1]}" ]]; then compadd -a found; else _files; fi
}
compdef _docker_rs docker docker-rs
"#;

const FISH: &str = r#"function __docker_rs_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c docker -c docker-rs -a '(__docker_rs_complete)'
"#;

async fn completion(env: &Env) -> Done {
    let script = match env.arg(0) {
        "bash" => BASH,
        "zsh" => ZSH,
        "fish" => FISH,
        other => {
            return Err(Failure::new(format!(
                "docker: no completion for {other:?}: bash, zsh and fish are known"
            )));
        }
    };
    print!("{script}");
    Ok(())
}

async fn candidates(env: &Env) -> Done {
    let (word, before) = match env.args().split_last() {
        Some((word, before)) => (word.as_str(), before),
        None => ("", &[][..]),
    };
    let mut found = match crate::find(before) {
        Some((command, _)) if word.starts_with('-') => flags(command),
        Some((command, used)) => {
            let given = before[used..].iter().filter(|word| !word.starts_with('-')).count();
            named(env, command.names[0], given).await
        }
        None => verbs(before),
    };
    found.retain(|candidate| candidate.starts_with(word));
    found.sort();
    found.dedup();
    found.iter().for_each(|candidate| println!("{candidate}"));
    Ok(())
}

/// The commands that go on from these words.
fn verbs(before: &[String]) -> Vec<String> {
    let names = super::all().flat_map(|command| command.names.iter()).filter(|name| **name != ASK);
    let next = names.filter_map(|name| {
        let parts: Vec<&str> = name.split(' ').collect();
        (parts.len() > before.len() && parts.iter().zip(before).all(|(part, word)| part == word))
            .then(|| parts[before.len()].to_owned())
    });
    next.collect()
}

fn flags(command: &Command) -> Vec<String> {
    command.flags.iter().flat_map(|flags| flags.iter()).map(|flag| format!("--{}", flag.long)).collect()
}

/// The objects that a command takes as its argument number `at`: those whose state lets it do something. An engine that does not answer knows none.
async fn named(env: &Env, command: &str, at: usize) -> Vec<String> {
    let bare = command.strip_prefix("container ").unwrap_or(command);
    let path = match bare {
        "stop" | "kill" | "pause" | "attach" | "top" | "restart" | "stats" | "exec"
            if at == 0 || bare != "exec" =>
        {
            "/containers/json"
        }
        "start" | "rm" | "logs" | "inspect" | "rename" | "diff" | "port" | "wait" | "update" | "commit"
        | "export" | "cp" | "unpause" => "/containers/json?all=1",
        "run" | "create" if at == 0 => "/images/json",
        "rmi" | "image rm" | "image inspect" | "tag" | "push" | "save" | "history" => "/images/json",
        "network rm" | "network inspect" | "network connect" | "network disconnect" => "/networks",
        "volume rm" | "volume inspect" => "/volumes",
        "context use" | "context rm" | "context inspect" => return contexts(env),
        "completion" => return ["bash", "zsh", "fish"].map(str::to_owned).to_vec(),
        _ => return Vec::new(),
    };
    let Ok(answer) = env.client.get(path).await else { return Vec::new() };
    let items = answer.as_array().or_else(|| answer["Volumes"].as_array());
    let names = |item: &Value| -> Vec<String> {
        let listed = item["Names"].as_array().or_else(|| item["RepoTags"].as_array());
        match listed {
            Some(list) => list
                .iter()
                .filter_map(Value::as_str)
                .map(|name| name.trim_start_matches('/').to_owned())
                .collect(),
            None => vec![text(item, "Name").to_owned()],
        }
    };
    items.into_iter().flatten().flat_map(names).filter(|name| !name.is_empty()).collect()
}

fn contexts(env: &Env) -> Vec<String> {
    let mut names = vec!["default".to_owned()];
    let folders = std::fs::read_dir(env.global.config_dir().join("contexts/meta"));
    for folder in folders.into_iter().flatten().flatten() {
        let meta = std::fs::read(folder.path().join("meta.json")).ok();
        let meta: Option<Value> = meta.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        names.extend(meta.map(|meta| text(&meta, "Name").to_owned()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_flags_are_offered() {
        assert!(verbs(&[]).contains(&"run".to_owned()));
        assert!(!verbs(&[]).contains(&ASK.to_owned()));
        assert!(verbs(&words("network")).contains(&"create".to_owned()));
        assert!(verbs(&words("nosuch")).is_empty());
        let (command, _) = crate::find(&words("container run")).expect("a command");
        assert!(flags(command).contains(&"--publish".to_owned()));
    }
}
