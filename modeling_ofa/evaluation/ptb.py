"""Penn Treebank tokens of captions, as COCO's caption scores count them: by Stanford's tokeniser, or without Java.

COCO's evaluation cuts captions with `PTBTokenizer` of Stanford CoreNLP 3.4.1, in lower case, and then leaves out most
punctuation. `stanford_tokens` runs that program out of the package pycocoevalcap; `ptb_tokens` follows its rules in
Python. docs/metrics.md says how often the two agree.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


# What COCO's evaluation drops. The brackets that it means to drop are upper case there, so lower-case ones stay.
_DROPPED = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLINGS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... ", "€": "$", "½": "1/2", "¼": "1/4"}
)
# Words that keep the point after them.
_ABBREVIATIONS = (
    "adm al ala apr ariz assn atty aug ave bldg blvd brig bros calif capt cf cmdr co col colo conn corp cos cpl ct dak"
    " dec dept det dr elec esq est etc ext feb fla fri ft ga gen gov hon inc ind insp intl jan jr jul jun kan ky lt"
    " ltd maj mar md messrs mfg mich minn mme mo mon mont mr mrs ms mt natl neb nev nov oct okla penn pres prof pvt rd"
    " rep reps rev sen sep sept sgt sq sr st ste supt tel tenn thu thurs treas tue tues univ va vs vt wed wis wyo"
).replace(" ", "|")

_TOKEN = re.compile(
    rf"""
      <[a-z]+>                                                      # markup: <person>
    | https?://\S+ | www\.\S+ | [\w.-]+@[\w-]+\.\w[\w.-]*            # addresses
    | (?<!\w)(?:(?:[a-z]\.){{2,}} | [a-z]\.(?=[ )"']) | ph\.d\. | (?:{_ABBREVIATIONS})\. | no\.(?=\ ?\d))
    | '(?:n'|(?:n|em|cause|\d0s)\b|t(?=(?:is|was)\b))               # rock 'n' roll, the '80s, 'tis
    | '(?:s|m|d|ll|re|ve)\b | n't\b
    | (?<!\w)\d\d?:\d\d(?=[ap]m\b)                                # the 5:30 of 5:30pm
    | (?<!\w)[-+]?(?:\d|\.\d)[\d.,:/-]*(?<=\d)(?![\w/-]*\w)         # 1,000  12:30  1/2  -5  5-10
    | (?<!\w)(?:can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b))
    | [#@][a-z]\w*
    | (?<!\w)(?:[odln]'(?!s\b)[^\W\d_]\w*(?:-\w+)* | ma'am | c'mon | hallowe'en | ol' | y'(?=all\b))
    | (?-i:[A-Z]+&[A-Z]+)                                           # R&B
    | \w+(?=n't\b)
    | \w+(?:[-/.]\w+)*                                              # tri-colored, and/or, example.com
    | [?!]{{2,}}                                                    # unlike one of them, not dropped
    | -+ | \.+ | ''+ | ``+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def ptb_tokens(caption: str) -> list[str]:
    """
    Cuts an English caption into Penn Treebank tokens without punctuation, nearly as Stanford's tokeniser does.

    Clitics are cut off (`isn't` → `is n't`, `man's` → `man 's`), hyphenated words and numbers stay whole,
    abbreviations keep their point. Known differences are rare spellings, such as emoticons and abbreviations of names.

    Examples:

    ```python
    >>> ptb_tokens("A man's dog isn't here, on the well-known St. Louis pier.")
    ['a', 'man', "'s", 'dog', 'is', "n't", 'here', 'on', 'the', 'well-known', 'st.', 'louis', 'pier']
    ```
    """
    tokens = (match.group().lower() for match in _TOKEN.finditer(caption.translate(_SPELLINGS)))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED and token.strip("-.")]


def java_package() -> Path | None:
    """The folder of pycocoevalcap, which holds Stanford's tokeniser and METEOR, if it and Java are installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations or shutil.which("java") is None:
        return None
    return Path(spec.submodule_search_locations[0])


def stanford_tokens(captions: Sequence[str]) -> list[list[str]]:
    """
    Cuts captions by Stanford's tokeniser itself, all of them in one run of Java.

    Raises:
        ImportError: If Java or the package pycocoevalcap is missing.
        RuntimeError: If the program fails.
    """
    package = java_package()
    if package is None:
        raise ImportError(
            "Stanford's tokeniser needs Java and pycocoevalcap: install a Java runtime and `pip install "
            "'modeling-ofa[meteor]'`, or use tokenizer='ptb', which needs neither."
        )
    lines = "\n".join(" ".join(caption.split()) for caption in captions) + "\n"
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    jar = package / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    run = subprocess.run(["java", "-cp", str(jar), *program], input=lines.encode(), capture_output=True, check=False)
    rows = run.stdout.decode().split("\n")[:-1]
    if run.returncode or len(rows) != len(captions):
        raise RuntimeError(f"Stanford's tokeniser failed: {run.stderr.decode(errors='replace').strip()[-500:]}")
    return [[token for token in row.split() if token not in _DROPPED] for row in rows]
