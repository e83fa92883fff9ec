// SPDX-License-Identifier: Apache-2.0

use super::*;

fn read(args: &[&str]) -> Result<EntryCall, String> {
    EntryCall::read(args.iter().map(OsString::from), |name| {
        let value = match name {
            "NODE_NAME" => "node-a",
            "V" => "2",
            "FLAGS" => "--v=2 --config=/c",
            "LINES" => "a\nb",
            "TAB" => "a\tb",
            "PATTERN" => "[::]:10249",
            "EMPTY" => "",
            _ => return None,
        };
        Some(value.to_owned())
    })
}

fn file(path: &str) -> OutputSink {
    OutputSink::File { path: path.into(), append: true }
}

fn redirected(stdout: OutputSink, stderr: OutputSink) -> LogOutput {
    LogOutput::Redirected { stdout, stderr }
}

/// The arguments of a call without the name, and where the output goes.
fn parts(args: &[&str]) -> (Vec<String>, LogOutput) {
    let call = read(args).unwrap_or_else(|why| panic!("{args:?}: {why}"));
    (call.args.iter().skip(1).map(|arg| arg.to_str().unwrap().to_owned()).collect(), call.output)
}

const LOG: &str = "/var/log/kube-proxy.log";

#[test]
fn each_distributions_call_is_a_call_of_the_agent() {
    let both = || redirected(file(LOG), file(LOG));
    let merged = || redirected(OutputSink::Stdout, OutputSink::Stdout);
    let copied = |stderr| LogOutput::Copied { file: LOG.into(), stderr };
    let own = LogOutput::default;
    let rows: [(&[&str], LogOutput); 15] = [
        (&["/usr/local/bin/kube-proxy", "--config=/c", "--hostname-override=node-a"], own()),
        (&["kube-proxy", "--config=/c", "--hostname-override=node-a"], own()),
        (&["/usr/local/bin/kube-ipvs", "kube-proxy", "--config=/c", "--hostname-override=node-a"], own()),
        (
            &[
                "/usr/local/bin/kube-ipvs",
                "/usr/local/bin/kube-proxy",
                "--config=/c",
                "--hostname-override=node-a",
            ],
            own(),
        ),
        (&["/hyperkube", "proxy", "--config=/c", "--hostname-override=node-a"], own()),
        (&["/hyperkube", "kube-proxy", "--config=/c", "--hostname-override=node-a"], own()),
        (&["/go-runner", "/usr/local/bin/kube-proxy", "--config=/c", "--hostname-override=node-a"], merged()),
        (
            &[
                "/go-runner",
                "--log-file=/var/log/kube-proxy.log",
                "--also-stdout",
                "/usr/local/bin/kube-proxy",
                "--config=/c",
                "--hostname-override=node-a",
            ],
            copied(true),
        ),
        (
            &[
                "/go-runner",
                "-log-file",
                "/var/log/kube-proxy.log",
                "-also-stdout=true",
                "-redirect-stderr=false",
                "--",
                "kube-proxy",
                "--config=/c",
                "--hostname-override=node-a",
            ],
            copied(false),
        ),
        (
            &[
                "/go-runner",
                "--log-file=/var/log/kube-proxy.log",
                "--log-file-size=1Gi",
                "--flush-interval",
                "5s",
                "kube-proxy",
                "--config=/c",
                "--hostname-override=node-a",
            ],
            both(),
        ),
        (
            &[
                "/go-runner",
                "--log-file=/var/log/kube-proxy.log",
                "--redirect-stderr=false",
                "kube-proxy",
                "--config=/c",
                "--hostname-override=node-a",
            ],
            redirected(file(LOG), OutputSink::Stderr),
        ),
        (
            &[
                "/bin/sh",
                "-c",
                "kube-proxy --config=/c --hostname-override=$NODE_NAME 1>>/var/log/kube-proxy.log 2>&1",
            ],
            both(),
        ),
        (
            &[
                "sh",
                "-ec",
                "exec kube-proxy --config='/c' \\\n  --hostname-override=\"${NODE_NAME}\" >> /var/log/kube-proxy.log 2>&1\n",
            ],
            both(),
        ),
        (
            &["/bin/sh", "-c", "/usr/local/bin/kube-proxy --config=/c --hostname-override=node-a 2>&1"],
            merged(),
        ),
        (
            &["/bin/sh", "-c", "kube-proxy --config=/c --hostname-override=node-a 2>&1 1>/x"],
            redirected(OutputSink::File { path: "/x".into(), append: false }, OutputSink::Stdout),
        ),
    ];
    for (args, output) in rows {
        let expected = ["--config=/c", "--hostname-override=node-a"].map(str::to_owned);
        assert_eq!(parts(args), (expected.to_vec(), output), "{args:?}");
    }
}

#[test]
fn words_keep_what_is_quoted() {
    let words = |script: &str| parts(&["sh", "-c", script]).0;
    assert_eq!(
        words(r#"kube-proxy --a="x y" '--b=$NODE_NAME' --c=\$1 --d="\"\\\z" """#),
        ["--a=x y", "--b=$NODE_NAME", "--c=$1", r#"--d="\\z"#, "",]
    );
    assert_eq!(words("kube-proxy --v=2>/x"), ["--v=2"], "only a whole word is a stream");
    assert_eq!(words("kube-proxy '2'>/x"), ["2"], "what is quoted is none");
    assert_eq!(words("kube-proxy --a=\"$FLAGS\" \"${PATTERN}\""), ["--a=--v=2 --config=/c", "[::]:10249"]);
    assert_eq!(words("kube-proxy --feature-gates=A=true,B=false"), ["--feature-gates=A=true,B=false"]);
}

#[test]
fn only_a_number_as_it_is_written_is_a_stream() {
    let all = |script: &str| parts(&["sh", "-c", script]);
    let stderr_to = |path| redirected(OutputSink::Stdout, file(path));
    assert_eq!(all("kube-proxy --v 2>>/x"), (vec!["--v".to_owned()], stderr_to("/x")));
    for word in ["$V", "${V}", "\"$V\"", "'2'", "\\2", "2''"] {
        let (words, output) = all(&format!("kube-proxy --v {word}>>/var/log/kube-proxy.log 2>&1"));
        assert_eq!(words, ["--v", "2"], "{word}");
        assert_eq!(output, redirected(file(LOG), file(LOG)), "{word}");
    }
    // A part of it is a value.
    assert_eq!(all("kube-proxy 1$V>>/x").0, ["12"]);
    assert_eq!(all("kube-proxy ${V}1>>/x").0, ["21"]);
    // The next word is written anew.
    assert_eq!(all("kube-proxy $V 2>>/x"), (vec!["2".to_owned()], stderr_to("/x")));
    assert_eq!(all("kube-proxy >>$V 2>>/x").1, redirected(file("2"), file("/x")));
}

#[test]
fn commands_of_the_agent_stay() {
    assert_eq!(parts(&["kube-ipvs", "status"]).0, ["status"]);
    assert_eq!(parts(&["kube-ipvs"]).0, [""; 0]);
    assert_eq!(parts(&[]).0, [""; 0]);
    assert_eq!(read(&["/usr/bin/kube-ipvs", "list"]).unwrap().args[0], "/usr/bin/kube-ipvs");
}

#[test]
fn what_the_image_has_no_program_for_is_refused() {
    for (args, part) in [
        (&["/bin/sh"][..], "this image has no shell"),
        (&["sh", "/script/cleanup.sh"], "this image has no shell"),
        (&["sh", "-c"], "this image has no shell"),
        (&["sh", "-c", ""], "the program to start is missing"),
        (&["sh", "-c", "exec"], "the program to start is missing"),
        (&["sh", "-c", "/script/cleanup.sh /mode"], "starts only kube-proxy, not /script/cleanup.sh"),
        (&["sh", "-c", "kube-proxy --v=2; sleep 5"], "no second command"),
        (&["sh", "-c", "echo -998 > /proc/$$/oom_score_adj && kube-proxy"], "no expansion but $NAME"),
        (&["sh", "-c", "kube-proxy 2>&1 | tee /x"], "no pipe"),
        (&["sh", "-c", "kube-proxy &"], "no background process"),
        (&["sh", "-c", "kube-proxy --a=$(hostname)"], "no expansion but $NAME"),
        (&["sh", "-c", "kube-proxy --a=`hostname`"], "no command substitution"),
        (&["sh", "-c", "kube-proxy --a=\"`hostname`\""], "no command substitution"),
        (&["sh", "-c", "kube-proxy --a=$NOBODY"], "no variable without a value, $NOBODY"),
        (&["sh", "-c", "kube-proxy --a=$EMPTY"], "no variable without a value, $EMPTY"),
        (&["sh", "-c", "kube-proxy $EMPTY"], "no variable without a value, $EMPTY"),
        (&["sh", "-c", "kube-proxy \"$EMPTY\""], "no variable without a value, $EMPTY"),
        (&["sh", "-c", "kube-proxy $FLAGS"], "in its value, $FLAGS: write \"$FLAGS\" if it is one argument"),
        (
            &["sh", "-c", "kube-proxy --a=${LINES}"],
            "no unquoted variable with white space in its value, $LINES",
        ),
        (
            &["sh", "-c", "kube-proxy --a\"=\"$TAB"],
            "no unquoted variable with white space in its value, $TAB",
        ),
        (&["sh", "-c", "kube-proxy >$FLAGS"], "no unquoted variable with white space in its value, $FLAGS"),
        (&["sh", "-c", "kube-proxy --a=$PATTERN"], "no unquoted variable with a pattern of files"),
        (&["sh", "-c", "$V=1 kube-proxy"], "starts only kube-proxy, not 2=1"),
        (&["sh", "-c", "A=1 kube-proxy"], "no assignment"),
        (&["sh", "-c", "kube-proxy --a='x"], "no quote without its end"),
        (&["sh", "-c", "kube-proxy \\"], "no backslash at its end"),
        (&["sh", "-c", "kube-proxy </x"], "no input redirection"),
        (&["sh", "-c", "kube-proxy 3>/x"], "no redirection of stream 3"),
        (&["sh", "-c", "kube-proxy >&3"], "no redirection to stream 3"),
        (&["sh", "-c", "kube-proxy >"], "no redirection without a file"),
        (&["sh", "-c", "kube-proxy >>"], "no redirection without a file"),
        (&["sh", "-c", "kube-proxy 2>&1>/x"], "no redirection directly after another"),
        (&["sh", "-c", "kube-proxy /*"], "no unquoted *"),
        (&["/hyperkube"], "the program to start is missing"),
        (&["/hyperkube", "kubelet"], "hyperkube of this image starts only kube-proxy, not kubelet"),
        (&["/go-runner"], "the program to start is missing"),
        (&["/go-runner", "--"], "the program to start is missing"),
        (&["/go-runner", "--log-file"], "--log-file needs a path"),
        (&["/go-runner", "--also-stdout=yes", "kube-proxy"], "--also-stdout=yes is neither true nor false"),
        (&["/go-runner", "--what", "kube-proxy"], "go-runner has no flag --what"),
        (&["/go-runner", "/usr/local/bin/kubelet"], "go-runner of this image starts only kube-proxy"),
    ] {
        let why = read(args).expect_err(&format!("{args:?}"));
        assert!(why.contains(part), "{args:?}: {why}");
    }
}
