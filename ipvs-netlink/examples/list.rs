// SPDX-License-Identifier: Apache-2.0
//! Lists the virtual services of this network namespace with their destinations, much as
//! `ipvsadm -Ln` does.

use std::net::SocketAddr;

use ipvs_netlink::{Client, Destination, ForwardMethod, PersistenceMask, Service, ServiceFlags};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut client = Client::open()?;
    let info = client.info()?;
    println!("IP Virtual Server version {} (size={})", info.version_text(), info.connection_table_size);
    println!("Prot LocalAddress:Port Scheduler Flags");
    println!("  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn");
    for service in client.services()? {
        println!("{} {}{}", service.id, service.scheduler, options(&service));
        for dest in client.destinations(&service.id)? {
            println!("{}", row(&dest));
        }
    }
    Ok(())
}

fn options(service: &Service) -> String {
    let mut text = String::new();
    if service.flags.contains(ServiceFlags::PERSISTENT) {
        text += &format!(" persistent {}", service.timeout);
        match service.persistence_mask {
            mask if mask == PersistenceMask::full(service.id.family()) => {}
            PersistenceMask::V4(mask) => text += &format!(" mask {mask}"),
            PersistenceMask::V6(prefix) => text += &format!(" mask {prefix}"),
        }
    }
    if service.flags.contains(ServiceFlags::ONE_PACKET) {
        text += " ops";
    }
    if let Some(name) = &service.pe_name {
        text += &format!(" pe {name}");
    }
    text
}

fn row(dest: &Destination) -> String {
    let forward = match dest.forward {
        ForwardMethod::Masquerade => "Masq",
        ForwardMethod::Local => "Local",
        ForwardMethod::Tunnel => "Tunnel",
        ForwardMethod::Route => "Route",
        ForwardMethod::Bypass => "Bypass",
        _ => "Unknown",
    };
    let addr = SocketAddr::new(dest.addr, dest.port).to_string();
    let (weight, active, inactive) = (dest.weight, dest.active_connections, dest.inactive_connections);
    format!("  -> {addr:<28} {forward:<7} {weight:<6} {active:<10} {inactive:<10}")
}
