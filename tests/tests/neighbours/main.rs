//! Promise 7: one bad neighbour is one bad neighbour. One file for each way in which one message, program, session or
//! caller could stop or slow all others.

mod frames;
mod names;
mod process;
mod ready;
mod programs;
