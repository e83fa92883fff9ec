// SPDX-License-Identifier: Apache-2.0
//! Transactions: every command, refusals, generations and notifications.

use nftables_netlink::netlink_batch::Errno;
use nftables_netlink::*;
use serde_json::json;

use super::{TABLE, commit, in_netns, listed};

const FAMILY: Family = Family::Ipv4;

fn table() -> String {
    TABLE.to_owned()
}

fn chain(name: &str) -> Chain {
    Chain::new(FAMILY, TABLE, name)
}

fn delete_chain(name: &str) -> Command {
    Command::DeleteChain { family: FAMILY, table: table(), chain: name.to_owned() }
}

fn rule(chain: &str, verdict: Verdict) -> Rule {
    Rule::new(FAMILY, TABLE, chain, [Expression::Verdict(verdict)])
}

fn verdicts(client: &mut Client, chain: &str) -> Vec<Expression> {
    let rules = client.chain_rules(FAMILY, TABLE, chain).unwrap();
    rules.into_iter().flat_map(|rule| rule.expressions).collect()
}

/// The errnos of the refused commands.
fn refused(client: &mut Client, commands: impl IntoIterator<Item = Command>) -> Vec<(usize, Errno)> {
    match client.commit(&commands.into_iter().collect()) {
        Err(CommitError::Refused { commands, incomplete: false }) => {
            commands.iter().map(|command| (command.index, command.refusal.errno())).collect()
        }
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn tables_chains_and_rules_come_and_go() {
    in_netns(|ns, client| {
        let mut own = Table::new(FAMILY, TABLE);
        own.userdata = userdata::comment("of a test");
        let mut base = Chain::base(FAMILY, TABLE, "forward", BaseChain::filter(Hook::Forward, -7));
        base.base.as_mut().unwrap().policy = Policy::Drop;
        base.userdata = userdata::comment("drops");
        let made = [
            Command::CreateTable(own.clone()),
            Command::CreateChain(base.clone()),
            Command::AddChain(chain("a")),
        ];
        client.commit(&made.into_iter().collect()).unwrap();
        let (mut tables, mut chains) =
            (client.tables(Scope::Family(FAMILY)).unwrap(), client.chains(Scope::All).unwrap());
        assert!(tables[0].handle.take().is_some() && chains[0].handle.take().is_some());
        assert_eq!((&tables[..], &chains[0]), (&[own][..], &base));
        let shown = listed(ns, "chain")[0].clone();
        let of = |key: &str| shown[key].clone();
        assert_eq!(
            [of("hook"), of("prio"), of("policy"), of("type")],
            [json!("forward"), json!(-7), json!("drop"), json!("filter")]
        );
        let added = [rule("a", Verdict::Accept), rule("a", Verdict::Return)].map(Command::AddRule);
        commit(client, FAMILY, added.into_iter().chain([Command::InsertRule(rule("a", Verdict::Drop))]));
        let all = [Verdict::Drop, Verdict::Accept, Verdict::Return].map(Expression::Verdict);
        assert_eq!(verdicts(client, "a"), all);
        let handle = client.chain_rules(FAMILY, TABLE, "a").unwrap()[1].handle.unwrap();
        let (family, name) = (FAMILY, || "a".to_owned());
        commit(client, FAMILY, [Command::DeleteRule { family, table: table(), chain: name(), handle }]);
        assert_eq!(verdicts(client, "a"), [all[0].clone(), all[2].clone()]);
        commit(client, FAMILY, [Command::FlushChain { family, table: table(), chain: name() }]);
        assert_eq!(verdicts(client, "a"), []);
        commit(client, FAMILY, [delete_chain("a")]);
        assert_eq!(client.chains(Scope::Table(FAMILY, TABLE)).unwrap().len(), 1);
        client.commit(&[Command::DeleteTable { family, table: table() }].into_iter().collect()).unwrap();
        assert!(client.tables(Scope::All).unwrap().is_empty());
    });
}

#[test]
fn a_refused_command_leaves_nothing_and_all_are_named() {
    in_netns(|_, client| {
        commit(client, FAMILY, [Command::AddChain(chain("used")), Command::AddChain(chain("a"))]);
        commit(client, FAMILY, [Command::AddRule(rule("a", Verdict::Jump("used".to_owned())))]);
        let id = client.generation().unwrap().id;
        let found = refused(
            client,
            [
                Command::AddChain(chain("new")),
                Command::CreateChain(chain("a")),
                Command::AddRule(rule("none", Verdict::Drop)),
                Command::AddRule(rule("new", Verdict::Drop)),
                delete_chain("none"),
            ],
        );
        assert_eq!(found, [(1, Errno::EEXIST), (2, Errno::ENOENT), (4, Errno::ENOENT)]);
        assert_eq!(refused(client, [delete_chain("used")]), [(0, Errno::EBUSY)]);
        let names: Vec<_> = client.chains(Scope::All).unwrap().into_iter().map(|chain| chain.name).collect();
        assert_eq!(names, ["used", "a"]);
        assert_eq!(client.generation().unwrap().id, id, "nothing changed");
        let foreign = Command::AddTable(Table::new(Family::Other(200), "t"));
        assert_eq!(refused(client, [foreign])[0].0, 0);
    });
}

#[test]
fn more_refusals_than_fit_are_a_refusal() {
    in_netns(|_, client| {
        commit(client, FAMILY, []);
        let missing: Transaction = (0..60_000).map(|n| delete_chain(&format!("c{n}"))).collect();
        let error = client.commit(&missing).unwrap_err();
        let CommitError::Refused { commands, incomplete: true } = &error else { panic!("{error}") };
        assert!(commands.iter().all(|command| command.refusal.errno() == Errno::ENOENT));
        // The socket is in order.
        commit(client, FAMILY, [Command::AddChain(chain("a"))]);
        assert_eq!(client.chains(Scope::All).unwrap().len(), 1);
    });
}

#[test]
fn a_transaction_for_another_generation_is_refused() {
    in_netns(|_, client| {
        commit(client, FAMILY, []);
        let generation = client.generation().unwrap();
        let mut transaction: Transaction = [Command::AddChain(chain("a"))].into_iter().collect();
        transaction.require_generation(generation.id);
        client.commit(&transaction).unwrap();
        assert_eq!(client.generation().unwrap().id, generation.id + 1);
        assert!(matches!(client.commit(&transaction), Err(CommitError::GenerationChanged)));
    });
}

#[test]
fn notifications_name_what_changed_and_who_did_it() {
    in_netns(|ns, client| {
        let mut listener = listen().unwrap();
        let ports = Set::new(FAMILY, TABLE, "ports", &[KeyField::InetService]);
        let elements = vec![Element::new([0, 80])];
        let set = || "ports".to_owned();
        commit(
            client,
            FAMILY,
            [
                Command::AddSet(ports),
                Command::AddElements { family: FAMILY, table: table(), set: set(), elements },
                Command::AddChain(chain("a")),
                Command::AddRule(rule("a", Verdict::Drop)),
            ],
        );
        ns.exec(&["nft", "delete", "table", "ip", TABLE]).unwrap();
        let (mut seen, mut generations, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        while generations.len() < 2 {
            for received in listener.receive().unwrap() {
                let received = received.unwrap();
                match Notification::parse(&received).unwrap() {
                    Notification::Generation(generation) => {
                        generations.push(generation);
                        ports.push(received.port);
                    }
                    Notification::Change { action, family, table, object } => {
                        assert_eq!((family, table.as_str()), (FAMILY, TABLE));
                        seen.push((action, object));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let new = [Object::Table, Object::Set(set()), Object::Elements(set()), Object::Chain("a".to_owned())];
        assert!(seen.iter().take(4).eq(&new.map(|object| (Action::New, object))), "{seen:?}");
        assert!(matches!(&seen[4], (Action::New, Object::Rule { chain, .. }) if chain == "a"), "{seen:?}");
        assert!(seen[5..].iter().all(|(action, _)| *action == Action::Delete));
        assert_eq!(seen.last().unwrap().1, Object::Table);
        assert_eq!((generations[1].id, generations[1].process.as_str()), (generations[0].id + 1, "nft"));
        // nfnetlink gives notifications of a transaction the port of its sender.
        assert_eq!(ports[0], client.port_number());
    });
}
