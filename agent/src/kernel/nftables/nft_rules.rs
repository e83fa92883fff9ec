// SPDX-License-Identifier: Apache-2.0
//! Reads and writes the chains of our tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables_netlink::netlink_batch::Errno;
use nftables_netlink::{
    BaseChain, Chain, CmpOp, Command, CommitError, Error, Expression, Hook, PayloadBase, Rule, Scope, Table,
};

use super::compile::compile;
use super::nft_elements::{own_elements, own_set, own_texts};
use super::nft_leftovers::save_text;
use super::{NftFilter, commit_error, elements, read_error};
use crate::core::model::settings::{LocalTraffic, Settings};
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::RulesOp;
use crate::core::plan::outcome::{Cause, Finished, OpError};
use crate::core::rules::Chains;
use crate::core::rules::nftables::{
    BASE_CHAINS, BaseHook, CHAINS, NftRule, OWN_SETS, TABLE, build_rules, key, set_key,
};
use crate::core::rules::removal::{Extent, find_removal};
use crate::core::rules::save::ObservedRules;
use crate::kernel::netfilter::nft_tables::nft_family;

/// Longest prefix length of a source range.
const MAX_PREFIX: u8 = 128;
/// How often rules are read that change meanwhile.
const TRIES: usize = 3;

/// Every rule that the agent can write for a family, with its text.
struct KnownRules(Vec<(Vec<Expression>, String)>);

impl KnownRules {
    /// The text of a rule. Another rule has no text of ours, so it differs from every wanted rule.
    fn text(&self, rule: &Rule) -> String {
        let known = self.0.iter().find(|(expressions, _)| *expressions == rule.expressions);
        known.map_or_else(|| "a rule of another program".to_owned(), |(_, text)| text.clone())
    }

    fn expressions(&self, text: &str) -> Option<&[Expression]> {
        self.0.iter().find(|(_, known)| known == text).map(|(expressions, _)| &expressions[..])
    }
}

impl NftFilter {
    /// `local`: networks of local pods besides that of the settings. The Node object may have another one.
    fn known_rules(&self, family: Family, local: &BTreeSet<IpNet>) -> KnownRules {
        let mut settings = vec![self.settings.clone()];
        if matches!(self.settings.local, LocalTraffic::Cidrs(_)) {
            let with = |cidr: Option<IpNet>| {
                let cidrs = PerFamily::new(cidr, cidr);
                Settings { local: LocalTraffic::Cidrs(cidrs), ..self.settings.clone() }
            };
            settings.extend(local.iter().copied().map(Some).chain([None]).map(with));
        }
        let mut rules: Vec<NftRule> = Vec::new();
        for (settings, by_route) in settings.iter().flat_map(|settings| [(settings, false), (settings, true)])
        {
            // Source ranges do not depend on these.
            let prefixes = if rules.is_empty() { 0..=MAX_PREFIX } else { 0..=0 };
            for rule in build_rules(family, settings, by_route, prefixes).into_values().flatten() {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
        KnownRules(rules.iter().map(|rule| (compile(rule, family), rule.text(family))).collect())
    }

    /// Reads the rules of a family; [`NftFilter::finished`] returns them. Rules that have not changed are read again only
    /// if `afresh`.
    pub fn read_rules(&mut self, family: Family, afresh: bool) {
        let known = self.rules_known[family];
        if !afresh && known.is_some() && known == self.generation() {
            self.ready.push(Finished::Rules(family, Ok(None)));
            return;
        }
        let rules = self.read_all(family).map(|rules| Some(Box::new(rules)));
        self.ready.push(Finished::Rules(family, rules));
    }

    fn read_all(&mut self, family: Family) -> Result<ObservedRules, OpError> {
        for _ in 0..TRIES {
            let began = self.generation();
            let read = self.read_table(family);
            let rules = match read {
                Err(Error::Interrupted) => continue,
                read => read.map_err(|error| read_error(&error))?,
            };
            if began == self.generation() {
                self.rules_known[family] = began;
                return Ok(rules);
            }
        }
        Err(OpError::plain(Cause::Other, "the rules change all the time: another program writes them"))
    }

    fn read_table(&mut self, family: Family) -> Result<ObservedRules, Error> {
        let all = self.client.chains(Scope::Family(nft_family(family)))?;
        let text = save_text(&mut self.client, family, &all)?;
        let leftovers = find_removal(&text, Extent::EveryMode);
        let mut observed = ObservedRules { leftovers, ..ObservedRules::default() };
        let ours: Vec<Chain> = all.into_iter().filter(|chain| chain.table == TABLE).collect();
        if ours.is_empty() {
            return Ok(observed);
        }
        for chain in &ours {
            let base = chain.base.iter().map(base_text).collect();
            observed.chains.insert(key(&chain.name), base);
        }
        let rules = self.client.rules(Scope::Table(nft_family(family), TABLE))?;
        let local = rules.iter().filter_map(|rule| excluded_source(&rule.expressions)).collect();
        let known = self.known_rules(family, &local);
        for rule in rules {
            observed.chains.entry(key(&rule.chain)).or_default().push(known.text(&rule));
        }
        for name in OWN_SETS {
            if let Some(elements) = elements(&mut self.client, family, name)? {
                observed.chains.insert(set_key(name), own_texts(name, family, elements));
            }
        }
        Ok(observed)
    }

    /// Writes all chains of a family in one transaction.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub fn write(&mut self, rules: &RulesOp) -> Result<(), OpError> {
        let commands = self.commands(rules, &[])?;
        let Err(error) = self.commit(commands) else { return Ok(()) };
        // A base chain with another hook or priority, of another version of the agent: made anew.
        let exist = |error: &CommitError| match error {
            CommitError::Refused { commands, .. } => {
                commands.iter().any(|refused| refused.refusal.errno() == Errno::EEXIST)
            }
            _ => false,
        };
        if !exist(&error) {
            return Err(commit_error(&error));
        }
        let scope = Scope::Table(nft_family(rules.family), TABLE);
        let chains = self.client.chains(scope).map_err(|error| read_error(&error))?;
        let is_wrong = |chain: &&Chain| {
            let wanted = BaseHook::named(&chain.name).map(BaseHook::to_string);
            chain.base.as_ref().map(base_text) != wanted
        };
        let wrong: Vec<&str> = chains.iter().filter(is_wrong).map(|chain| chain.name.as_str()).collect();
        let commands = self.commands(rules, &wrong)?;
        self.commit(commands).map_err(|error| commit_error(&error))
    }

    /// The commands that write all chains. `remove`: base chains to make anew.
    fn commands(&self, rules: &RulesOp, remove: &[&str]) -> Result<Vec<Command>, OpError> {
        let family = nft_family(rules.family);
        let table = || TABLE.to_owned();
        let mut commands = vec![Command::AddTable(Table::new(family, TABLE))];
        for name in OWN_SETS {
            let texts = rules.chains.get(&set_key(name)).map(Vec::as_slice).unwrap_or_default();
            let (elements, set) = (own_elements(name, texts), name.to_owned());
            commands.push(Command::AddSet(own_set(name, rules.family)));
            commands.push(Command::FlushSet { family, table: table(), set: set.clone() });
            commands.push(Command::AddElements { family, table: table(), set, elements });
        }
        let names = BASE_CHAINS.iter().map(|base| base.name).chain(CHAINS);
        commands.extend(remove.iter().map(|chain| Command::DeleteChain {
            family,
            table: table(),
            chain: (*chain).to_owned(),
        }));
        for name in names.clone() {
            commands.push(Command::AddChain(match BaseHook::named(name) {
                Some(base) => Chain::base(family, TABLE, name, base_chain(base)),
                None => Chain::new(family, TABLE, name),
            }));
            commands.push(Command::FlushChain { family, table: table(), chain: name.to_owned() });
        }
        let local = rules.chains.values().flatten().filter_map(|rule| excluded_in_text(rule)).collect();
        let known = self.known_rules(rules.family, &local);
        for name in names {
            commands.extend(rule_commands(&rules.chains, name, rules.family, &known)?);
        }
        Ok(commands)
    }
}

/// The network that a rule excludes as source, if it does.
fn excluded_source(expressions: &[Expression]) -> Option<IpNet> {
    let [Expression::Payload { base: PayloadBase::Network, offset: 8 | 12, .. }, rest @ ..] = expressions
    else {
        return None;
    };
    let (prefix, rest) = match rest {
        [Expression::Bitwise { mask, .. }, rest @ ..] => {
            (Some(mask.iter().map(|byte| byte.count_ones()).sum::<u32>()), rest)
        }
        rest => (None, rest),
    };
    let [Expression::Cmp { op: CmpOp::Neq, data, .. }, ..] = rest else { return None };
    let addr: IpAddr = match data.len() {
        4 => <[u8; 4]>::try_from(&data[..]).ok()?.into(),
        _ => <[u8; 16]>::try_from(&data[..]).ok()?.into(),
    };
    IpNet::new(addr, prefix.map_or(Ok(IpNet::from(addr).prefix_len()), u8::try_from).ok()?).ok()
}

/// The same, of its text.
fn excluded_in_text(rule: &str) -> Option<IpNet> {
    rule.split_once(" saddr != ")?.1.split(' ').next()?.parse().ok()
}

fn rule_commands(
    chains: &Chains,
    name: &str,
    family: Family,
    known: &KnownRules,
) -> Result<Vec<Command>, OpError> {
    let texts = chains.get(&key(name)).map(Vec::as_slice).unwrap_or_default();
    // The properties of a base chain come first.
    let is_base = BaseHook::named(name).is_some();
    let command = |text: &String| {
        let expressions = known.expressions(text);
        let expressions =
            expressions.ok_or_else(|| OpError::plain(Cause::Other, format!("not a rule of ours: {text}")))?;
        Ok(Command::AddRule(Rule::new(nft_family(family), TABLE, name, expressions)))
    };
    texts.iter().skip(usize::from(is_base)).map(command).collect()
}

fn hook(name: &str) -> Hook {
    match name {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        _ => Hook::Postrouting,
    }
}

fn base_chain(base: &BaseHook) -> BaseChain {
    match base.kind {
        "nat" => BaseChain::nat(hook(base.hook), base.priority),
        _ => BaseChain::filter(hook(base.hook), base.priority),
    }
}

/// The properties of a base chain in the kernel, in the words of [`BaseHook`].
fn base_text(base: &BaseChain) -> String {
    let known = BASE_CHAINS.iter().find(|known| base_chain(known) == *base);
    match known {
        Some(known) => known.to_string(),
        None => format!(
            "type {} hook {:?} priority {}, policy {:?}",
            base.kind, base.hook, base.priority, base.policy
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nftables_netlink::Policy;

    #[test]
    fn every_rule_has_its_own_text() {
        let interface = LocalTraffic::Interface("veth+".to_owned());
        for settings in [
            Settings::default(),
            Settings { masquerade_all: true, keep_established: true, ..Settings::default() },
            Settings { local: interface, ..Settings::default() },
        ] {
            for family in Family::ALL {
                let rules = build_rules(family, &settings, false, 0..=MAX_PREFIX);
                let rules: Vec<NftRule> = rules.into_values().flatten().collect();
                let texts: BTreeSet<String> = rules.iter().map(|rule| rule.text(family)).collect();
                let distinct: Vec<&NftRule> = rules
                    .iter()
                    .enumerate()
                    .filter(|(n, rule)| !rules[..*n].contains(rule))
                    .map(|(_, rule)| rule)
                    .collect();
                assert_eq!(texts.len(), distinct.len());
                let mut compiled: Vec<Vec<Expression>> = Vec::new();
                for rule in distinct {
                    let expressions = compile(rule, family);
                    assert!(!compiled.contains(&expressions), "{}", rule.text(family));
                    compiled.push(expressions);
                }
            }
        }
    }

    #[test]
    fn the_network_of_local_pods_is_found_in_rules_and_in_their_text() {
        for (family, net) in
            [(Family::V4, "10.244.1.0/24"), (Family::V6, "fd00:244:1::/64"), (Family::V4, "10.244.1.5/32")]
        {
            let net: IpNet = net.parse().unwrap();
            let local = LocalTraffic::Cidrs(PerFamily::new(Some(net), Some(net)));
            let settings = Settings { local, ..Settings::default() };
            let rules = build_rules(family, &settings, false, []);
            let (mut in_rules, mut in_text) = (BTreeSet::new(), BTreeSet::new());
            for rule in rules.into_values().flatten() {
                in_rules.extend(excluded_source(&compile(&rule, family)));
                in_text.extend(excluded_in_text(&rule.text(family)));
            }
            assert_eq!((in_rules, in_text), ([net].into(), [net].into()));
        }
    }

    #[test]
    fn base_chains_have_the_text_of_the_wanted_ones() {
        for base in BASE_CHAINS {
            assert_eq!(base_text(&base_chain(&base)), base.to_string());
            let other = BaseChain { policy: Policy::Drop, ..base_chain(&base) };
            assert_ne!(base_text(&other), base.to_string());
        }
    }
}
