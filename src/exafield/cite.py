"""The papers behind what is used."""

from dataclasses import dataclass

from exafield.run import Run


@dataclass(frozen=True, slots=True)
class Work:
    """A publication.

    Args:
        key: in BibTeX.
        kind: of BibTeX entry.
        authors: in order, "Given Family"; in braces what BibTeX must not take apart.
        title, year: of the work.
        venue: where it appeared.
        link: DOI, arXiv number or address.
        behind: what in this package comes from it.
    """

    key: str
    kind: str
    authors: tuple[str, ...]
    title: str
    year: int
    venue: str
    link: str
    behind: str

    @property
    def names(self) -> str:
        """The authors, for reading."""
        *first, last = (author.translate({ord(brace): None for brace in "{}"}) for author in self.authors)
        return f"{', '.join(first)} and {last}" if first else last

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        scheme, _, number = self.link.partition(":")
        return {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(scheme, f"{scheme}:") + number

    def plain(self) -> str:
        """For reading."""
        return f"{self.names}: {self.title}. {self.venue}, {self.year}. {self.link}\n  behind: {self.behind}"

    def bibtex(self) -> str:
        """For a bibliography."""
        where = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}.get(self.kind, "howpublished")
        scheme, _, number = self.link.partition(":")
        found = {"arXiv": ("eprint", number), "doi": ("doi", number)}.get(scheme, ("url", self.link))
        entries = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",
            where: self.venue,
            "year": str(self.year),
            found[0]: found[1],
        }
        if scheme == "arXiv":
            entries["archiveprefix"] = "arXiv"
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in entries.items())
        return f"@{self.kind}{{{self.key},\n{body}\n}}"


WORKS = (
    Work(
        "laanait2019exascale",
        "misc",
        (
            "Nouamane Laanait",
            "Joshua Romero",
            "Junqi Yin",
            "M. Todd Young",
            "Sean Treichler",
            "Vitalii Starchenko",
            "Albina Borisevich",
            "Alex Sergeev",
            "Michael Matheson",
        ),
        "Exascale Deep Learning for Scientific Inverse Problems",
        2019,
        "arXiv preprint",
        "arXiv:1909.11150",
        "the microscopy problem, control=Bitvector and grouping=Grouped or GraphAware",
    ),
    Work(
        "romero2022accelerating",
        "inproceedings",
        (
            "Joshua Romero",
            "Junqi Yin",
            "Nouamane Laanait",
            "Bing Xie",
            "M. Todd Young",
            "Sean Treichler",
            "Vitalii Starchenko",
            "Albina Borisevich",
            "Alex Sergeev",
            "Michael Matheson",
        ),
        "Accelerating Collective Communication in Data Parallel Training across Deep Learning Frameworks",
        2022,
        "19th USENIX Symposium on Networked Systems Design and Implementation (NSDI 22)",
        "https://www.usenix.org/conference/nsdi22/presentation/romero",
        "the cached numbering of gradient groups and control=Bitvector",
    ),
    Work(
        "kurth2018exascale",
        "inproceedings",
        (
            "Thorsten Kurth",
            "Sean Treichler",
            "Joshua Romero",
            "Mayur Mudigonda",
            "Nathan Luehr",
            "Everett Phillips",
            "Ankur Mahesh",
            "Michael Matheson",
            "Jack Deslippe",
            "Massimiliano Fatica",
            "{Prabhat}",
            "Michael Houston",
        ),
        "Exascale Deep Learning for Climate Analytics",
        2018,
        "International Conference for High Performance Computing, Networking, Storage and Analysis (SC18)",
        "arXiv:1810.01993",
        "the climate problem, control=Tree, and gradients one step late (lag=1)",
    ),
    Work(
        "tang2019doublesqueeze",
        "inproceedings",
        ("Hanlin Tang", "Chen Yu", "Xiangru Lian", "Tong Zhang", "Ji Liu"),
        "DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass Error-compensated Compression",
        2019,
        "36th International Conference on Machine Learning (ICML), PMLR 97",
        "arXiv:1905.05957",
        "feedback=True of collective=Flat and Hierarchical",
    ),
    Work(
        "yang2019highly",
        "misc",
        (
            "Liu Yang",
            "Sean Treichler",
            "Thorsten Kurth",
            "Keno Fischer",
            "David Barajas-Solano",
            "Josh Romero",
            "Valentin Churavy",
            "Alexandre Tartakovsky",
            "Michael Houston",
            "{Prabhat}",
            "George Karniadakis",
        ),
        "Highly-scalable, physics-informed GANs for learning solutions of stochastic PDEs",
        2019,
        "arXiv preprint",
        "arXiv:1910.13444",
        "the subsurface problem, and players on sub-worlds that share ranks",
    ),
    Work(
        "yang2020physics",
        "misc",
        ("Liu Yang", "Dongkun Zhang", "George Em Karniadakis"),
        "Physics-Informed Generative Adversarial Networks for Stochastic Differential Equations",
        2020,
        "SIAM Journal on Scientific Computing",
        "arXiv:1811.02033",
        "generator=paper of the subsurface problem, and a critic for each group of snapshots",
    ),
    Work(
        "slaughter2020task",
        "misc",
        (
            "Elliott Slaughter",
            "Wei Wu",
            "Yuankun Fu",
            "Legend Brandenburg",
            "Nicolai Garcia",
            "Wilhem Kautz",
            "Emily Marx",
            "Kaleb S. Morris",
            "Qinglei Cao",
            "George Bosilca",
            "Seema Mirchandaney",
            "Wonchan Lee",
            "Sean Treichler",
            "Patrick McCormick",
            "Alex Aiken",
        ),
        "Task Bench: A Parameterized Benchmark for Evaluating Parallel Runtime Performance",
        2020,
        "arXiv preprint",
        "arXiv:1908.05790",
        "task graphs and engines kept apart",
    ),
    Work(
        "culler1993logp",
        "inproceedings",
        (
            "David Culler",
            "Richard Karp",
            "David Patterson",
            "Abhijit Sahay",
            "Klaus Erik Schauser",
            "Eunice Santos",
            "Ramesh Subramonian",
            "Thorsten {von Eicken}",
        ),
        "LogP: Towards a Realistic Model of Parallel Computation",
        1993,
        "4th ACM SIGPLAN Symposium on Principles and Practice of Parallel Programming (PPoPP)",
        "doi:10.1145/155332.155333",
        "exafield scale: what messages cost on a modelled machine",
    ),
    Work(
        "you2017large",
        "misc",
        ("Yang You", "Igor Gitman", "Boris Ginsburg"),
        "Large Batch Training of Convolutional Networks",
        2017,
        "arXiv preprint",
        "arXiv:1708.03888",
        "LARC: learning rates that adapt to each layer",
    ),
    Work(
        "micikevicius2018mixed",
        "misc",
        (
            "Paulius Micikevicius",
            "Sharan Narang",
            "Jonah Alben",
            "Gregory Diamos",
            "Erich Elsen",
            "David Garcia",
            "Boris Ginsburg",
            "Michael Houston",
            "Oleksii Kuchaiev",
            "Ganesh Venkatesh",
            "Hao Wu",
        ),
        "Mixed Precision Training",
        2018,
        "arXiv preprint",
        "arXiv:1710.03740",
        "half precision with single-precision weights and a dynamic loss scale",
    ),
    Work(
        "kirkland2010advanced",
        "book",
        ("Earl J. Kirkland",),
        "Advanced Computing in Electron Microscopy, 2nd edition",
        2010,
        "Springer",
        "doi:10.1007/978-1-4419-6533-2",
        "the multislice method and the Kirkland scattering factors",
    ),
    Work(
        "lobato2014accurate",
        "article",
        ("I. Lobato", "D. Van Dyck"),
        "An accurate parameterization for scattering factors, electron densities and electrostatic potentials for "
        "neutral atoms that obey all physical constraints",
        2014,
        "Acta Crystallographica Section A 70, 636-649",
        "doi:10.1107/S205327331401643X",
        "the Lobato scattering factors",
    ),
)


def works_behind(run: Run) -> tuple[Work, ...]:
    """The works behind what a run uses: its problem and what it chose."""
    reduction, training = run.reduction, run.training
    used = {"romero2022accelerating"}
    if run.problem.name == "microscopy":
        used |= {"laanait2019exascale", "kirkland2010advanced"}
    if run.problem.name == "climate":
        used.add("kurth2018exascale")
    if reduction.control.startswith("bitvector") or reduction.grouping.startswith(("grouped", "graph_aware")):
        used.add("laanait2019exascale")
    if reduction.control.startswith("tree") or reduction.lag:
        used.add("kurth2018exascale")
    if "feedback=true" in reduction.collective:
        used.add("tang2019doublesqueeze")
    if training.optimiser.startswith("larc"):
        used.add("you2017large")
    if training.precision != "fp32":
        used.add("micikevicius2018mixed")
    return tuple(work for work in WORKS if work.key in used)
