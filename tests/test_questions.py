"""Files of questions, and every fault of one by the question that has it."""

import json

import pytest

from minisft.data.questions import read_questions
from minisft.errors import UserError

CONTEXT = "Ada wrote the program in 1843. The program was the first; Ada knew."


def content(**changes):
    question = {"id": "q1", "question": "Who wrote it?",
                "answers": [{"text": "Ada", "answer_start": 0}]} | changes
    other = {"id": "q2", "question": "Who read it?", "answers": [], "is_impossible": True,
             "plausible_answers": [{"text": "Ada", "answer_start": 0}]}
    return {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": [
        {"context": CONTEXT, "qas": [question, other]}]}]}


def write(tmp_path, value):
    path = tmp_path / "q.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_questions_with_and_without_answers(tmp_path):
    found = read_questions(write(tmp_path, content()))
    assert found.ids == ["q1", "q2"] and found.contexts == [CONTEXT] * 2
    assert found.answers == [[("Ada", 0)], []] and found.answerable == [True, False]
    assert found.titles == ["Ada", "Ada"] and found.place(1).endswith("q.json, question q2")
    assert found.subset([1]).ids == ["q2"] and found.subset([1]).path == found.path


def test_an_impossible_question_has_no_answer_whatever_stands_there(tmp_path):
    found = read_questions(write(tmp_path, content(is_impossible=True)))
    assert found.answerable == [False, False]


@pytest.mark.parametrize("text, start, place", [
    ("Ada", 50, 58), ("Ada", 3, 0), ("Ada", -5, 0), ("program", 14, 14), ("program", 33, 35)])
def test_an_answer_is_found_nearby(tmp_path, text, start, place):
    found = read_questions(write(tmp_path, content(answers=[{"text": text,
                                                             "answer_start": start}])))
    assert found.answers[0] == [(text, place)]
    assert len(found.notes) == (start != place)
    assert not found.notes or "1 answers do not stand where answer_start says" in found.notes[0]


@pytest.mark.parametrize("changes, message", [
    ({"answers": [{"text": "Bob", "answer_start": 0}]}, "q1: the answer 'Bob' does not stand"),
    ({"answers": [{"text": "Ada", "answer_start": "0"}]}, "q1: answer_start is '0'"),
    ({"answers": [{"text": "Ada", "answer_start": True}]}, "q1: answer_start is True"),
    ({"answers": [{"answer_start": 0}]}, "q1: text is None, expected a text"),
    ({"answers": {}}, "q1: answers is {}, expected a list"), ({"answers": ["Ada"]}, "q1: text is"),
    ({"question": " "}, "q1: question is ' '"), ({"id": 3}, r"qas\[0\]: id is 3"),
    ({"id": "q2"}, "question q2 is there twice")])
def test_faults_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_questions(write(tmp_path, content(**changes)))


@pytest.mark.parametrize("value, message", [
    ("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ([], "data is None, expected a list"),
    ({"data": [{}]}, r"data\[0\]: paragraphs is None"), ({"data": []}, "holds no question"),
    ({"data": [{"paragraphs": [{"qas": [1], "context": "a"}]}]}, r"qas\[0\] is 1"),
    ({"data": [{"paragraphs": [{"qas": [], "context": ""}]}]}, r"context is ''"),
    ({"data": [{"paragraphs": [{"context": "a"}]}]}, "qas is None")])
def test_other_files_are_refused(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read_questions(write(tmp_path, value))
