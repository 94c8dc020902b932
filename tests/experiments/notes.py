"""What an executor reports, kept for the tests of executors."""


class Notes:
    """A report that keeps what it is told."""

    def __init__(self):
        self.found, self.given_up, self.shares = [], [], []

    def rows(self, cells, rows):
        self.found += list(zip(cells, rows, strict=True))

    def failed(self, failure):
        self.given_up.append(failure)

    def running(self, shares):
        self.shares += [share for _, share in shares]
