//! A step that failed, and how it is reported.

use core::ffi::CStr;

use crate::plan::CONTROL;
use crate::report::{MAX_DETAIL, RECORD_HEAD, Record, Step};
use crate::sys::{self, Errno, Fd};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure<'a> {
    step: Step,
    errno: Errno,
    detail: &'a [u8],
    /// A file system context, from which the kernel's own messages can be read.
    context: Option<Fd>,
}

impl<'a> Failure<'a> {
    pub(crate) const fn new(step: Step, errno: Errno) -> Self {
        Self { step, errno, detail: b"", context: None }
    }

    pub(crate) const fn of(step: Step, errno: Errno, detail: &'a CStr) -> Self {
        Self { step, errno, detail: detail.to_bytes(), context: None }
    }

    pub(crate) const fn with_message(step: Step, errno: Errno, message: &'static str) -> Self {
        Self { step, errno, detail: message.as_bytes(), context: None }
    }

    pub(crate) const fn with_context(self, context: Fd) -> Self {
        Self { context: Some(context), ..self }
    }

    #[cfg(test)]
    #[cfg(feature = "writer")]
    pub(crate) const fn errno(&self) -> Errno {
        self.errno
    }

    /// Sends the failure to whoever reads [`CONTROL`]: the agent, or for the command's process the setup process.
    pub(crate) fn report(&self) {
        let mut message = Text::<{ RECORD_HEAD + MAX_DETAIL }>::new();
        message.push(&[0; RECORD_HEAD]);
        message.push(self.detail);
        if let Some(context) = self.context {
            let mut buffer = [0; 200];
            // Each read returns one message, errors prefixed with `e `. The first one is the most specific.
            if let Ok(length) = sys::read(context, &mut buffer) {
                let line = buffer.get(..length).unwrap_or_default();
                message.push(b": ");
                message.push(line.strip_prefix(b"e ").unwrap_or(line).trim_ascii_end());
            }
        }
        let head = Record::head(self.step, self.errno.0, message.length - RECORD_HEAD);
        message.bytes[..RECORD_HEAD].copy_from_slice(&head);
        // Fails if there is no reader any more: SIGPIPE is blocked.
        let _ = sys::write(Fd(CONTROL), message.as_bytes());
    }
}

/// A text of at most `N` bytes; what does not fit is cut off.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], length: 0 }
    }

    /// Appends as much of `more` as fits. Returns whether all of it fitted.
    pub(crate) fn push(&mut self, more: &[u8]) -> bool {
        let free = self.bytes.get_mut(self.length..).unwrap_or_default();
        let length = more.len().min(free.len());
        for (to, from) in free.iter_mut().zip(more) {
            *to = *from;
        }
        self.length += length;
        length == more.len()
    }

    pub(crate) fn push_number(&mut self, number: impl Into<u64>) -> bool {
        let mut number = number.into();
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return self.push(&digits[first..]);
            }
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// The text with a terminating NUL, if that fits.
    pub(crate) fn as_c_str(&mut self) -> Option<&CStr> {
        *self.bytes.get_mut(self.length)? = 0;
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn a_text_is_cut_where_it_does_not_fit() {
        let mut text = Text::<8>::new();
        assert!(text.push(b"abc"));
        assert!(text.push_number(120_u32));
        assert_eq!(text.as_c_str(), Some(c"abc120"));
        assert!(!text.push(b"xyz"));
        assert_eq!(text.as_bytes(), b"abc120xy");
        assert_eq!(text.as_c_str(), None);
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 256, u32::MAX] {
            let mut text = Text::<12>::new();
            text.push_number(number);
            assert_eq!(text.as_bytes(), number.to_string().as_bytes());
        }
    }
}
