//! `simulate`: seeds in the simulator.

use super::CommandError;
use super::args::{Cli, SimulateArgs};

pub(super) fn simulate(_cli: &Cli, _args: &SimulateArgs) -> Result<u8, CommandError> {
    Err(CommandError::Usage("not merged yet".to_owned()))
}
