//! One bad neighbour is one bad neighbour: no message, program, session or pod stops the others.

mod process;
mod ready;
mod programs;
