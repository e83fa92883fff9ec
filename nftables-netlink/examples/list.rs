// SPDX-License-Identifier: Apache-2.0
//! Lists the tables of this network namespace with their chains, rules and sets. Needs `CAP_NET_ADMIN`.

use nftables_netlink::{Client, Scope, Table, userdata};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::open()?;
    println!("generation {}", client.generation()?.id);
    for table in client.tables(Scope::All)? {
        println!("table {} {}", table.family, table.name);
        print_table(&mut client, &table)?;
    }
    Ok(())
}

fn print_table(client: &mut Client, table: &Table) -> Result<(), Box<dyn std::error::Error>> {
    let scope = Scope::Table(table.family, &table.name);
    for set in client.sets(scope)? {
        let elements = client.elements(table.family, &table.name, &set.name)?;
        println!("  set {}: {} elements of {} bytes", set.name, elements.len(), set.key_len);
    }
    for chain in client.chains(scope)? {
        match &chain.base {
            Some(base) => println!("  chain {}: {} {:?} {}", chain.name, base.kind, base.hook, base.priority),
            None => println!("  chain {}", chain.name),
        }
        for rule in client.chain_rules(table.family, &table.name, &chain.name)? {
            let names: Vec<&str> = rule.expressions.iter().map(|expression| expression.name()).collect();
            println!(
                "    {} # {}",
                names.join(" "),
                userdata::comment_of(&rule.userdata).unwrap_or_default()
            );
        }
    }
    Ok(())
}
