//! Ports of a local cluster, all from one base.

use anyhow::Context;

/// Distance from the base to the ports of each endpoint.
const FLIGHT_OFFSET: u16 = 10;
const RPC_OFFSET: u16 = 20;
const HTTP_OFFSET: u16 = 40;

/// Ports by the number of a node, from 0; data nodes come after the access nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// PostgreSQL port of the first access node; 0 lets the system choose every port.
    pub(crate) base: u16,
}

impl Ports {
    /// The base when none is given.
    pub(crate) const BASE_DEFAULT: u16 = 5440;

    /// Address of the PostgreSQL endpoint.
    pub(crate) fn pg(self, node: u16) -> anyhow::Result<String> {
        self.address(0, node)
    }

    /// Address of the Flight SQL endpoint.
    pub(crate) fn flight(self, node: u16) -> anyhow::Result<String> {
        self.address(FLIGHT_OFFSET, node)
    }

    /// Address of the internal gRPC endpoint.
    pub(crate) fn rpc(self, node: u16) -> anyhow::Result<String> {
        self.address(RPC_OFFSET, node)
    }

    /// Address of the HTTP endpoint.
    pub(crate) fn http(self, node: u16) -> anyhow::Result<String> {
        self.address(HTTP_OFFSET, node)
    }

    fn address(self, offset: u16, node: u16) -> anyhow::Result<String> {
        let port = match self.base {
            0 => 0,
            base => offset
                .checked_add(node)
                .and_then(|distance| base.checked_add(distance))
                .with_context(|| format!("there is no port {base} + {offset} + {node}"))?,
        };
        Ok(format!("127.0.0.1:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_from_the_base() {
        let ports = Ports { base: Ports::BASE_DEFAULT };
        assert_eq!(ports.pg(0).expect("it fits"), "127.0.0.1:5440");
        assert_eq!(ports.flight(1).expect("it fits"), "127.0.0.1:5451");
        assert_eq!(ports.rpc(3).expect("it fits"), "127.0.0.1:5463");
        assert_eq!(ports.http(2).expect("it fits"), "127.0.0.1:5482");
    }

    #[test]
    fn base_zero_leaves_it_to_the_system() {
        assert_eq!(Ports { base: 0 }.http(5).expect("it fits"), "127.0.0.1:0");
    }

    #[test]
    fn a_port_beyond_the_last_is_refused() {
        assert!(Ports { base: u16::MAX }.flight(0).is_err());
    }
}
