// SPDX-License-Identifier: Apache-2.0
//! Shows a dummy device and its addresses: `cargo run --example show -- kube-ipvs0`

use dummy_iface::DummyDevice;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "kube-ipvs0".to_owned());
    let mut device = DummyDevice::open(&name)?;
    println!("{name}: {:?}", device.state()?);
    for address in device.addresses()?.own.unwrap_or_default() {
        println!("  {address}");
    }
    Ok(())
}
