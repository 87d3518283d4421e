//! Messages on their way.

use super::exporter::Message;

/// Messages on their way to several gateways.
#[derive(Default)]
pub struct Messages {
    all: Vec<Option<(Message, u32)>>,
    free: Vec<u32>,
}

impl Messages {
    /// Keeps a message for so many readers; its number.
    pub fn add(&mut self, message: Message, readers: u32) -> u32 {
        let entry = Some((message, readers));
        match self.free.pop() {
            Some(number) => {
                self.all[number as usize] = entry;
                number
            }
            None => {
                self.all.push(entry);
                self.all.len() as u32 - 1
            }
        }
    }

    /// For one of its readers.
    pub fn take(&mut self, number: u32) -> Option<Message> {
        let entry = &mut self.all[number as usize];
        match entry {
            Some((message, readers)) if *readers > 1 => {
                *readers -= 1;
                Some(message.clone())
            }
            _ => {
                self.free.push(number);
                entry.take().map(|(message, _)| message)
            }
        }
    }
}
