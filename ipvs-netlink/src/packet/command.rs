// SPDX-License-Identifier: Apache-2.0
//! Numbers of the commands.

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Commands of the family, `IPVS_CMD_*`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum IpvsCommand {
            $($(#[$doc])* $name,)*
            /// A number that this version does not know.
            Other(u8),
        }

        impl From<u8> for IpvsCommand {
            fn from(number: u8) -> Self {
                match number {
                    $($number => IpvsCommand::$name,)*
                    other => IpvsCommand::Other(other),
                }
            }
        }

        impl From<IpvsCommand> for u8 {
            fn from(command: IpvsCommand) -> u8 {
                match command {
                    $(IpvsCommand::$name => $number,)*
                    IpvsCommand::Other(other) => other,
                }
            }
        }
    };
}

commands! {
    /// Add a service; also the kind of every part of a list of services.
    NewService = 1,
    /// Change a service.
    SetService = 2,
    /// Remove a service with its destinations.
    DelService = 3,
    /// Report one service, or all.
    GetService = 4,
    /// Add a destination; also the kind of every part of a list of destinations.
    NewDest = 5,
    /// Change a destination.
    SetDest = 6,
    /// Remove a destination.
    DelDest = 7,
    /// Report the destinations of a service.
    GetDest = 8,
    /// Start a sync daemon; also the kind of every part of their list.
    NewDaemon = 9,
    /// Stop a sync daemon.
    DelDaemon = 10,
    /// Report the sync daemons.
    GetDaemon = 11,
    /// Set the timeouts; also the kind of their report.
    SetConfig = 12,
    /// Report the timeouts.
    GetConfig = 13,
    /// The kind of the report of version and size.
    SetInfo = 14,
    /// Report version and size.
    GetInfo = 15,
    /// Set counters to zero.
    Zero = 16,
    /// Remove everything.
    Flush = 17,
}
