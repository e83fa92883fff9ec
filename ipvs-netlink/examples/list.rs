// SPDX-License-Identifier: Apache-2.0
//! Lists the virtual services of this network namespace with their destinations.

use ipvs_netlink::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::open()?;
    for service in client.services()? {
        println!("{} {}", service.id, service.scheduler);
        for dest in client.destinations(&service.id)? {
            println!("  {}:{} {:?} weight {}", dest.addr, dest.port, dest.forward, dest.weight);
        }
    }
    Ok(())
}
