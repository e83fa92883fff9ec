// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs list` beside `ipvsadm -Ln`, byte for byte.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use integration::lab::{Netns, agent_binary};

fn restore(ns: &Netns, lines: &str) {
    ns.exec_with(&["ipvsadm", "-R"], Some(lines)).unwrap();
}

fn same(ns: &Netns) {
    let binary = agent_binary().unwrap();
    let binary = binary.to_str().unwrap();
    let theirs = ns.exec(&["ipvsadm", "-Ln"]).unwrap().stdout;
    for args in [&["list"][..], &["-Ln"], &["-L", "-n"]] {
        let command: Vec<&str> = std::iter::once(binary).chain(args.iter().copied()).collect();
        assert_eq!(ns.exec(&command).unwrap().stdout, theirs, "{args:?}");
    }
}

#[test]
fn every_kind_of_line_equals_ipvsadm() {
    let ns = Netns::new("list").unwrap();
    same(&ns);
    restore(
        &ns,
        "-A -t 10.96.0.1:443 -s rr\n\
         -a -t 10.96.0.1:443 -r 10.0.0.100:6443 -m\n\
         -A -t 10.96.0.10:53 -s wlc -p 600\n\
         -a -t 10.96.0.10:53 -r 10.244.0.7:53 -m -w 3\n\
         -a -t 10.96.0.10:53 -r 10.244.0.6:53 -g -w 0\n\
         -A -u 10.96.0.10:53 -s rr -p 300 -M 255.255.255.0\n\
         -A -u 10.96.0.11:53 -s sh -b sh-fallback,sh-port\n\
         -A -u 10.96.0.12:53 -s mh -b mh-port\n\
         -A -u 10.96.0.13:53 -s rr -o\n\
         -A --sctp-service 10.96.0.14:9 -s rr\n\
         -a --sctp-service 10.96.0.14:9 -r 10.244.0.9:9 -i\n\
         -A -f 7 -s lc -p 10\n\
         -A -f 8 -6 -s rr\n\
         -A -t [fd00:96::1:1]:80 -s rr -p 50 -M 64\n\
         -a -t [fd00:96::1:1]:80 -r [fd00:244:1::11]:8080 -m\n\
         -a -t [fd00:96::1:1]:80 -r [fd00:244:1:1111:2222:3333:4444:5555]:65535 -m -w 65535\n",
    );
    same(&ns);
}

/// The comparison of ipvsadm is not a total order: its output depends on its sorting algorithm.
#[test]
fn addresses_are_sorted_as_by_ipvsadm() {
    let ns = Netns::new("order").unwrap();
    let lines: String = (0..200u32)
        .map(|n| {
            let [a, b, c, d] = n.wrapping_mul(2_654_435_761).to_be_bytes();
            format!("-A -t {}.{b}.{c}.{}:{} -s rr\n", a % 223 + 1, d % 250 + 1, 80 + n)
        })
        .collect();
    restore(&ns, &lines);
    let dests: String =
        (0..60u32).map(|n| format!("-a -t 9.9.9.9:9 -r {}.1.2.3:80 -m\n", n * 37 % 220 + 1)).collect();
    restore(&ns, &format!("-A -t 9.9.9.9:9 -s rr\n{dests}"));
    same(&ns);
}
